// Compares the kernels of a library with plain scalar code in double precision, without Python, so
// that it also runs in an emulator of another processor: PROGRAM LIBRARY. Prints the largest error
// of each comparison, and returns 1 if one is too large.
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kernels.h"

using namespace recurra;
typedef std::vector<float> Floats;

static void* library;
static bool failed = false;

template <class Result = void, class... Arguments>
Result call(const char* name, Arguments... arguments) {
  void* found = dlsym(library, name);
  if (!found) std::printf("%s is missing\n", name), std::exit(2);
  return reinterpret_cast<Result (*)(Arguments...)>(found)(arguments...);
}

static Floats random_floats(int64_t count, float scale = 1) {
  static std::mt19937 generator(0);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  Floats numbers(count);
  for (float& x : numbers) x = uniform(generator);
  return numbers;
}

// A buffer that a kernel fills: NaN wherever it writes nothing.
static Floats unset(int64_t count) { return Floats(count + 64, NAN); }

// Relative to the largest number. An instruction may round every sum of a product of pairs to odd and
// flush denormals (AVX-512 BF16, and BFDOT of ARM), which costs at most the last bit of each sum.
// Rounding the operands to bfloat16 costs much more.
constexpr double kSums = 2e-5, kOperands = 3e-2;

static void compare(const char* what, const float* actual, const std::vector<double>& expected,
                    int kind, double tolerance) {
  double largest = 0, error = 0;
  for (double x : expected) largest = std::max(largest, std::fabs(x));
  for (size_t i = 0; i < expected.size(); i++) {
    double difference = std::fabs(actual[i] - expected[i]);
    if (!(difference <= error)) error = difference;  // also if it is NaN
  }
  bool bad = !(error <= tolerance * largest) || largest == 0;
  failed |= bad;
  std::printf("%-8s kind %d  %-20s %.1e of %.1e\n", bad ? "WRONG" : "equal", kind, what, error,
              largest);
}

static void compare(const char* what, const float* actual, const std::vector<double>& expected,
                    int kind) {
  compare(what, actual, expected, kind, kind == kSingle ? kSums : kOperands);
}

static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// One layer with scalar arithmetic, forward and backward. Gates and deltas are those of `cell_*.h`.
struct Scalar {
  int cell;  // 0 rnn, 1 rnn-relu, 2 gru, 3 lstm
  int64_t T, B, H;
  int G, D;
  double scale;
  const Floats &weight, &inner_bias, &projected;
  std::vector<double> h, c, gates, deltas, grad_bias, grad_h, grad_c;

  double product(int64_t t, int64_t b, int64_t row) const {
    double total = 0;
    for (int64_t k = 0; k < H; k++) total += h[(t * B + b) * H + k] * weight[row * H + k];
    return total;
  }

  double& gate(int64_t t, int64_t b, int g, int64_t u) {
    return gates[((t * B + b) * 5 + g) * H + u];
  }

  void forward() {
    for (int64_t t = 0; t < T; t++)
      for (int64_t b = 0; b < B; b++)
        for (int64_t u = 0; u < H; u++) {
          double a[4], r[4];
          for (int g = 0; g < G; g++) {
            r[g] = product(t, b, g * H + u);
            a[g] = projected[((t * B + b) * G + g) * H + u];
          }
          double before = h[(t * B + b) * H + u], &after = h[((t + 1) * B + b) * H + u];
          if (cell < 2) {
            after = cell == 1 ? std::max(0.0, a[0] + r[0]) : std::tanh(a[0] + r[0]);
          } else if (cell == 2) {
            double reset = gate(t, b, 0, u) = sigmoid(a[0] + r[0]);
            double z = gate(t, b, 1, u) = sigmoid(a[1] + r[1]);
            double inner = gate(t, b, 3, u) = r[2] + inner_bias[u];
            double n = gate(t, b, 2, u) = std::tanh(a[2] + reset * inner);
            after = (1 - z) * n + z * before;
          } else {
            for (int g = 0; g < 4; g++)
              gate(t, b, g, u) = g == 2 ? std::tanh(a[2] + r[2]) : sigmoid(a[g] + r[g]);
            double& now = c[((t + 1) * B + b) * H + u];
            now = gate(t, b, 1, u) * c[(t * B + b) * H + u] + gate(t, b, 0, u) * gate(t, b, 2, u);
            after = gate(t, b, 3, u) * std::tanh(now);
          }
        }
  }

  // grad_h and grad_c hold the gradients of the last state before, and of the first one afterwards.
  void backward(const Floats& grad_outputs) {
    for (int64_t t = T - 1; t >= 0; t--) {
      std::vector<double> carried(B * H);
      for (int64_t b = 0; b < B; b++)
        for (int64_t u = 0; u < H; u++) {
          int64_t at = b * H + u, row = (t * B + b) * H + u;
          double grad = grad_h[at] + grad_outputs[row], d[4];
          if (cell == 0) d[0] = grad * (1 - h[row + B * H] * h[row + B * H]);
          if (cell == 1) d[0] = h[row + B * H] > 0 ? grad : 0;
          if (cell == 2) {
            double r = gate(t, b, 0, u), z = gate(t, b, 1, u), n = gate(t, b, 2, u);
            d[2] = grad * (1 - z) * (1 - n * n);
            d[3] = d[2] * r;
            d[0] = d[3] * gate(t, b, 3, u) * (1 - r);
            d[1] = grad * (h[row] - n) * z * (1 - z);
            carried[at] = grad * z;
          }
          if (cell == 3) {
            double i = gate(t, b, 0, u), f = gate(t, b, 1, u), g = gate(t, b, 2, u);
            double o = gate(t, b, 3, u), squashed = std::tanh(c[row + B * H]);
            double grad_now = grad_c[at] + grad * o * (1 - squashed * squashed);
            d[0] = grad_now * g * i * (1 - i);
            d[1] = grad_now * c[row] * f * (1 - f);
            d[2] = grad_now * i * (1 - g * g);
            d[3] = grad * squashed * o * (1 - o);
            grad_c[at] = scale * grad_now * f;
          }
          for (int k = 0; k < D; k++) {
            deltas[((t * B + b) * D + k) * H + u] = d[k];
            grad_bias[k * H + u] += d[k];
          }
        }
      for (int64_t b = 0; b < B; b++)
        for (int64_t u = 0; u < H; u++) {
          double total = 0;
          for (int g = 0; g < G; g++) {
            int delta = cell == 2 && g == 2 ? 3 : g;
            for (int64_t k = 0; k < H; k++)
              total += deltas[((t * B + b) * D + delta) * H + k] * weight[(g * H + k) * H + u];
          }
          grad_h[b * H + u] = scale * (total + carried[b * H + u]);
        }
    }
  }
};

static std::vector<double> wide(const Floats& x) { return {x.begin(), x.end()}; }

static void test_layer(int cell, int kind, int64_t T, int64_t B, int64_t H, int threads) {
  CellLayout layout;
  call("recurra_cell_layout", int32_t(cell), &layout);
  const int64_t G = layout.gates, D = layout.deltas, rows = T * B * H;
  Floats weight = random_floats(G * H * H, 1 / std::sqrt(float(H)));
  Floats inner_bias = random_floats(H), projected = random_floats(rows * G, 2);
  Floats h = random_floats(B * H), c = random_floats(B * H), grad_outputs = random_floats(rows);
  Floats grad_h = random_floats(B * H), grad_c = random_floats(B * H);
  Scalar s{cell, T, B, H, int(G), int(D), 0.75, weight, inner_bias, projected, wide(h), wide(c),
           {}, {}, {}, {}, {}};
  s.h.resize(rows + B * H), s.c.resize(rows + B * H), s.gates.resize(rows * 5);
  s.deltas.resize(rows * D), s.grad_bias.resize(D * H);
  s.grad_h = wide(grad_h), s.grad_c = wide(grad_c);
  s.forward();
  s.backward(grad_outputs);

  Floats hidden = unset(rows + B * H), cells = unset(rows + B * H), saved = unset(rows * 4);
  std::copy(h.begin(), h.end(), hidden.begin()), std::copy(c.begin(), c.end(), cells.begin());
  Floats hidden_operand = unset((T + 1) * B * (H + 2)), delta_operand = unset(T * B * (D * H + 2));
  Floats deltas = unset(rows * D), grad_bias = unset(D * H);
  Floats first_h = unset(B * H), first_c = unset(B * H);
  Floats packed = unset(call<int64_t>("recurra_packed_numbers", G, H, H));
  Floats spare = unset(call<int64_t>("recurra_spare_numbers", int64_t(threads), B, H));
  Layer l{};
  l.cell = cell, l.kind = kind, l.threads = threads;
  l.steps = T, l.batch = B, l.units = H, l.recurrent_scale = 0.75f;
  l.weight_hh = weight.data(), l.inner_bias = inner_bias.data(), l.projected = projected.data();
  l.hidden = hidden.data(), l.cells = cells.data(), l.saved = layout.saved ? saved.data() : nullptr;
  l.grad_outputs = grad_outputs.data(), l.grad_hidden = grad_h.data(), l.grad_cells = grad_c.data();
  l.deltas = deltas.data(), l.grad_bias = grad_bias.data();
  l.grad_initial = first_h.data(), l.grad_initial_cells = first_c.data();
  l.packed = packed.data(), l.spare = spare.data();
  if (kind != kSingle)
    l.hidden_operand = hidden_operand.data(), l.delta_operand = delta_operand.data();
  const Layer* layer = &l;
  call("recurra_layer_forward", layer);
  call("recurra_layer_backward", layer);
  std::printf("layer: cell %d, %d steps, %d rows, %d units, %d threads\n", cell, int(T), int(B),
              int(H), threads);
  compare("hidden", hidden.data(), s.h, kind);
  if (layout.states == 2) compare("cells", cells.data(), s.c, kind);
  // Rounding changes the sign of a few sums near zero, and thereby the derivative of ReLU.
  if (cell == 1 && kind != kSingle) return;
  compare("deltas", deltas.data(), s.deltas, kind);
  compare("bias gradient", grad_bias.data(), s.grad_bias, kind);
  compare("initial gradient", first_h.data(), s.grad_h, kind);
  if (layout.states == 2) compare("initial cell gradient", first_c.data(), s.grad_c, kind);
}

// out (m, n) = a' b + bias, with a (depth, m).
static std::vector<double> product(const Floats& a, const Floats& b, const Floats& bias, int64_t m,
                                   int64_t depth, int64_t n) {
  std::vector<double> out(m * n);
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      double total = bias[j];
      for (int64_t k = 0; k < depth; k++) total += double(a[k * m + i]) * b[k * n + j];
      out[i * n + j] = total;
    }
  return out;
}

// Numbers that are bfloat16 already, unless the products are those of fp32 numbers.
static Floats random_operands(int kind, int64_t count) {
  Floats numbers = random_floats(count);
  for (float& x : numbers)
    if (kind != kSingle) x = std::round(x * 128) / 128;
  return numbers;
}

// The operands of a matrix-product kernel, with these values.
static std::vector<char> operands(int kind, const Floats& numbers) {
  const bool halves = kind == kPairs || kind == kTiles;
  const size_t size = halves ? 2 : 4;
  std::vector<char> bytes(numbers.size() * size);
  for (size_t i = 0; i < numbers.size(); i++)  // A bfloat16 is the upper half of a float.
    std::memcpy(&bytes[i * size], reinterpret_cast<const char*>(&numbers[i]) + 4 - size, size);
  return bytes;
}

static void test_products(int kind, int64_t rows, int64_t m, int64_t n, int threads) {
  std::printf("products: depth %d, %d rows, %d columns, %d threads\n", int(rows), int(m), int(n),
              threads);
  Floats a = random_operands(kind, rows * m), b = random_operands(kind, rows * n);
  Floats bias = random_floats(n);
  Floats turned(rows * m), out = unset(m * n), zero(n);
  for (int64_t k = 0; k < rows; k++)
    for (int64_t i = 0; i < m; i++) turned[i * rows + k] = a[k * m + i];
  Floats packed = unset(call<int64_t>("recurra_dense_numbers", int64_t(threads), rows, n));
  DenseProduct dense{};
  dense.kind = kind, dense.threads = threads, dense.rows = m, dense.depth = rows, dense.n = n;
  dense.lda = rows, dense.a = turned.data(), dense.weight = b.data();
  dense.weight_row = n, dense.weight_column = 1, dense.bias = bias.data(), dense.out = out.data();
  dense.packed = packed.data();
  call("recurra_multiply", static_cast<const DenseProduct*>(&dense));
  compare("product", out.data(), product(a, b, bias, m, rows, n), kind, kSums);

  const std::vector<char> left = operands(kind, a);
  packed = unset(call<int64_t>("recurra_transposed_numbers", int64_t(threads), rows, n));
  out = unset(m * n);
  GradientProduct gradient{};
  gradient.kind = kind, gradient.threads = threads, gradient.rows = rows;
  gradient.m = m, gradient.n = n, gradient.lda = m, gradient.ldb = n, gradient.ldc = n;
  gradient.a = left.data(), gradient.b = b.data(), gradient.c = out.data();
  gradient.packed = packed.data();
  call("recurra_multiply_transposed", static_cast<const GradientProduct*>(&gradient));
  compare("gradient product", out.data(), product(a, b, zero, m, rows, n), kind, kSums);
}

static void test_output(int kind, int64_t N, int64_t H, int64_t V, int threads) {
  Floats hidden = random_floats(N * H), weight = random_floats(V * H), bias = random_floats(V);
  std::vector<int64_t> targets(N);
  std::vector<double> expected(N * H), expected_bias(V), loss(1);
  for (int64_t n = 0; n < N; n++) {
    targets[n] = n * 7 % V;
    std::vector<double> logits(V);
    double sum = 0;
    for (int64_t v = 0; v < V; v++) {
      logits[v] = bias[v];
      for (int64_t k = 0; k < H; k++) logits[v] += double(hidden[n * H + k]) * weight[v * H + k];
      sum += std::exp(logits[v]);
    }
    loss[0] += (std::log(sum) - logits[targets[n]]) / N;
    for (int64_t v = 0; v < V; v++) {
      double grad = (std::exp(logits[v]) / sum - (v == targets[n])) / N;
      expected_bias[v] += grad;
      for (int64_t k = 0; k < H; k++) expected[n * H + k] += grad * weight[v * H + k];
    }
  }
  Floats logits = unset(N * call<int64_t>("recurra_logit_numbers", V)), actual(1, NAN);
  Floats grad_hidden = unset(N * H), grad_bias = unset(V);
  Floats spare = unset(call<int64_t>("recurra_output_spare_numbers", int64_t(threads), V));
  Floats packed = unset(call<int64_t>("recurra_output_numbers", int64_t(threads), H, V));
  OutputLayer o{};
  o.kind = kind, o.threads = threads, o.rows = N, o.units = H, o.vocabulary = V;
  o.hidden = hidden.data(), o.weight = weight.data(), o.bias = bias.data();
  o.targets = targets.data(), o.loss = actual.data(), o.grad_logits = logits.data();
  o.grad_hidden = grad_hidden.data(), o.grad_bias = grad_bias.data();
  o.spare = spare.data(), o.packed = packed.data();
  call("recurra_output_forward", static_cast<const OutputLayer*>(&o));
  call("recurra_output_backward", static_cast<const OutputLayer*>(&o));
  compare("loss", actual.data(), loss, kind);
  compare("output gradient", grad_hidden.data(), expected, kind);
  compare("output bias gradient", grad_bias.data(), expected_bias, kind);
}

static void test_scan(int64_t T, int64_t columns, int threads) {
  Floats a = random_floats(T * columns), b = random_floats(T * columns);
  Floats initial = random_floats(columns), grads = random_floats(T * columns);
  std::vector<double> h = wide(initial), outputs, grad_a(T * columns), later(columns);
  for (int64_t t = 0; t < T; t++)
    for (int64_t i = 0; i < columns; i++)
      outputs.push_back(h[i] = a[t * columns + i] * h[i] + b[t * columns + i]);
  for (int64_t t = T - 1; t >= 0; t--)
    for (int64_t i = 0; i < columns; i++) {
      double grad = grads[t * columns + i] + later[i];
      grad_a[t * columns + i] = grad * (t ? outputs[(t - 1) * columns + i] : initial[i]);
      later[i] = a[t * columns + i] * grad;
    }
  Floats out = unset(T * columns), out_a = out, out_b = out, first = unset(columns);
  Floats grad_final(columns);
  LinearScan s{};
  s.threads = threads, s.recurrent_scale = 1, s.steps = T, s.columns = columns;
  s.a = a.data(), s.b = b.data(), s.initial = initial.data(), s.outputs = out.data();
  s.grad_outputs = grads.data(), s.grad_final = grad_final.data();
  s.grad_a = out_a.data(), s.grad_b = out_b.data(), s.grad_initial = first.data();
  call("recurra_scan_forward", static_cast<const LinearScan*>(&s));
  call("recurra_scan_backward", static_cast<const LinearScan*>(&s));
  compare("scan", out.data(), outputs, kSingle);
  compare("scan gradient", out_a.data(), grad_a, kSingle);
  compare("scan first gradient", first.data(), later, kSingle);
}

int main(int, char** arguments) {
  library = dlopen(arguments[1], RTLD_NOW);
  if (!library) return std::printf("%s\n", dlerror()), 2;
  std::printf("vectors of %d numbers\n", call<int32_t>("recurra_lanes"));
  std::vector<int> kinds{kSingle, kRounded};
  for (int kind : {kPairs, kTiles})
    if (call<int32_t>("recurra_has_kind", int32_t(kind))) kinds.push_back(kind);
  for (int kind : kinds)
    for (int threads : {1, 3}) {
      for (int cell = 0; cell < 4; cell++) {
        test_layer(cell, kind, 7, 3, 5, threads);
        test_layer(cell, kind, 5, 17, 40, threads);
        test_layer(cell, kind, 3, 33, 67, threads);
      }
      for (int rows = 1; rows <= 9; rows++) test_products(kind, 32 + rows, rows, 67, threads);
      test_products(kind, 1, 3, 5, threads);
      test_products(kind, 1027, 33, 21, threads);
      test_products(kind, 33, 20, 67, threads);
      test_products(kind, 40, 65, 16, threads);
      test_output(kind, 19, 33, 71, threads);
      test_scan(6, 131, threads);
    }
  return failed;
}
