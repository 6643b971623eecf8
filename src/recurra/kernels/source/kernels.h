// Arguments of the kernels: sizes and pointers. `kernels/structures.py` reads this header, so each
// field is a scalar or a pointer, and each enumeration counts from 0.
//
// T steps, B rows, H units. All tensors are contiguous and time-major. A cell (see `cell.h`) has G
// gates, I of which are inner gates, saves S values per unit and step, and has D deltas.
#pragma once

#include <cstdint>

#define RECURRA_EXPORT extern "C" __attribute__((visibility("default")))

namespace recurra {

// The matrix-product kernels: fp32; fp32 instructions on bf16-rounded operands; bf16 dot-product
// instructions; AMX tiles. See `product.h`.
enum Kind : int32_t { kSingle, kRounded, kPairs, kTiles };

// The sizes that the struct of a cell declares.
struct CellLayout {
  int32_t gates, states, saved, inner_gates, deltas;
};

struct Layer {
  int32_t cell, kind;  // cell: the place in `RECURRA_CELLS`
  int32_t threads;
  int64_t steps, batch, units;
  float recurrent_scale;  // of every gradient that passes to the step before
  // Keep only two steps: step t is stored at index t % 2 of `hidden`, `hidden_operand`, `cells`
  // and, without ids, `projected`, whose first dimension is 2. `saved` is null, and no backward
  // pass follows.
  int32_t keeps_two;

  const float* weight_hh;   // (G*H, H)
  const float* inner_bias;  // (I*H,): b_hh of the inner gates, or null
  const int64_t* ids;       // (T, B), or null where `projected` has a row for each step
  const float* projected;   // (V, G*H) with ids, otherwise (T, B, G*H): x W_ih' + biases
  float* hidden;            // (T+1, B, H), the first filled by the caller
  void* hidden_operand;  // (T+1, B, operand width of H): h rounded for the product; null for fp32
  float* cells;          // (T+1, B, H) with two states, the first filled by the caller
  float* saved;          // (T, B, S*H), or null where nothing is saved

  const float* grad_outputs;  // (T, B, H)
  const float* grad_hidden;   // (B, H), of the final state
  const float* grad_cells;    // (B, H) with two states
  float* deltas;              // (T, B, D*H); null if the products read rounded deltas
  void* delta_operand;        // (T, B, operand width of D*H): deltas rounded; null for fp32
  float* grad_bias;           // (D*H,)
  float* grad_initial;        // (B, H)
  float* grad_initial_cells;  // (B, H) with two states

  void* packed;  // the weight, `recurra_packed_numbers` of it
  float* spare;  // `recurra_spare_numbers` of it
};

// c (m, n) = a' b over `rows` rows: the gradient of a weight.
struct GradientProduct {
  int32_t kind, threads;
  int64_t rows, m, n, lda, ldb, ldc;
  const void* a;   // of the kind's operands, which are rounded already
  const float* b;  // rounded while it is packed
  float* c;
  void* packed;  // `recurra_transposed_numbers` of it
};

// out = a weight + bias.
struct DenseProduct {
  int32_t kind, threads;
  int64_t rows, depth, n;
  int64_t lda;
  int32_t is_operand, reserved;  // a holds operands, not fp32 numbers
  const void* a;                 // (rows, depth); a finite value follows an odd depth of operands
  const float* weight;           // (depth, n): see `Layout` for its strides
  int64_t weight_row, weight_column;
  const float* bias;  // (n,), or null
  float* out;         // (rows, n)
  void* packed;       // `recurra_dense_numbers` of it
};

// The output layer: logits = hidden weight' + bias of N rows, and the mean cross-entropy. A row of
// logits is padded to `recurra_logit_numbers`.
//
// Either `recurra_output_forward` and `recurra_output_backward` compute the loss and the gradients,
// except that of the weight, or `recurra_output_in_blocks` computes all of them, or only the losses
// if `grad_weight` is null.
struct OutputLayer {
  int32_t kind, threads;
  int64_t rows, units, vocabulary;
  const float* hidden;     // (N, H)
  const float* weight;     // (V, H)
  const float* bias;       // (V,)
  const int64_t* targets;  // (N,)
  float* loss;             // one number, in nats
  double* nats;            // (N,), the loss of each row, or null; in blocks only
  void* grad_logits;       // (N, padded V), operands: the forward pass leaves them; not in blocks
  float* grad_hidden;      // (N, H), of the backward pass
  float* grad_weight;      // (V, H), in blocks only
  float* grad_bias;        // (V,), of the forward pass
  float* spare;            // `recurra_output_spare_numbers` or `recurra_block_spare_numbers` of it
  void* packed;            // `recurra_output_numbers` or `recurra_block_numbers` of it
};

enum Rule : int32_t { kSgd, kAdam, kAdamW };

// One update of `count` parameters, each of `sizes` numbers.
struct Update {
  int32_t rule, threads;
  int64_t count;
  const int64_t* sizes;
  float* const* parameters;
  const float* const* gradients;
  float* const* first;   // momentum, or Adam's mean of gradients; null for SGD without momentum
  float* const* second;  // Adam's mean of squared gradients
  const float* decays;   // weight decay of each parameter
  float factor;          // of every gradient: the factor of clipping
  float lr;
  float momentum;
  float beta2, epsilon;
  float new_share, new_square_share;  // Adam: 1 - beta_1 and 1 - beta_2, computed in fp64
  float correction, root_correction;  // Adam: 1 - beta_1^step and the root of 1 - beta_2^step
  int32_t is_first;                   // SGD: the momentum starts as the gradient
};

// Generation of S samples in parallel, T tokens each. In each layer, `steps` is T, `batch` is S and
// `keeps_two` is set.
struct Generation {
  int32_t threads, num_layers;
  int32_t packs;  // the weights are not packed yet, or have changed
  int32_t greedy;
  const Layer* layers;
  // A layer without ids reads the layer below, or the embedding of the token. The next four are
  // null for a layer with ids.
  const float* const* weights_ih;  // (G*H, I)
  const float* const* biases;      // (G*H,): those that can be added in advance
  void* const* packed_ih;          // `recurra_packed_numbers` of it
  float* const* projected;         // (2, S, G*H), the layer's own `projected`
  const float* embedding;          // (V, E), or null
  int64_t embedding_size;
  void* embedding_operand;  // (S, E + E % 2): rows as the product takes them

  int64_t vocabulary;
  const float* head_weight;  // (V, H)
  const float* head_bias;    // (V,)
  void* packed_head;         // `recurra_packed_numbers` of it
  float* logits;             // (S, padded V)

  int64_t* ids;            // (T+1, S), the first filled by the caller
  const double* uniforms;  // (T, S) in [0, 1); null for greedy
  uint8_t* seen;           // (S, V), or null without a penalty
  const int64_t* banned;
  int64_t num_banned;
  int64_t top_k;                                         // V or more for all
  double temperature, top_p, min_p, repetition_penalty;  // 1, 0 and 1 have no effect
};

// h_t = a_t h_{t-1} + b_t, elementwise over `columns` numbers.
struct LinearScan {
  int32_t threads;
  float recurrent_scale;  // of every gradient that passes to the step before
  int64_t steps, columns;
  const float* a;        // (T, columns)
  const float* b;        // (T, columns)
  const float* initial;  // (columns,)
  float* outputs;        // (T, columns): h_1 to h_T

  const float* grad_outputs;  // (T, columns)
  const float* grad_final;    // (columns,)
  float* grad_a;              // (T, columns)
  float* grad_b;              // (T, columns)
  float* grad_initial;        // (columns,)
};

}  // namespace recurra
