// How the next token is chosen from a row of logits: the arithmetic of `engine/sampling.py`, in
// the same order and in fp64.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels.h"

namespace recurra {

class Sampler {
 public:
  explicit Sampler(const Generation& g) : g_(g), logits_(g.vocabulary) {}

  // The token of a sample, from its logits without bias; -1 where one of them is NaN or infinite.
  int64_t choose(const float* logits, int64_t sample, double uniform) {
    for (int64_t v = 0; v < g_.vocabulary; v++) logits_[v] = double(logits[v] + g_.head_bias[v]);
    if (!is_finite()) return -1;
    if (g_.seen) penalize(g_.seen + sample * g_.vocabulary);
    for (int64_t i = 0; i < g_.num_banned; i++) logits_[g_.banned[i]] = kNever;
    if (g_.greedy) return std::max_element(logits_.begin(), logits_.end()) - logits_.begin();
    warp();
    return draw(uniform);
  }

 private:
  static constexpr int64_t kSortedAtOnce = 256;
  static constexpr double kNever = -std::numeric_limits<double>::infinity();

  // Whether no logit is NaN or plus infinity.
  bool is_finite() const {
    for (double x : logits_)
      if (!(x < std::numeric_limits<double>::infinity())) return false;
    return *std::max_element(logits_.begin(), logits_.end()) > kNever;
  }

  void penalize(const uint8_t* seen) {
    constexpr double kMax = std::numeric_limits<double>::max();
    for (int64_t v = 0; v < g_.vocabulary; v++) {
      if (!seen[v]) continue;
      double& x = logits_[v];
      x = x > 0 ? x / g_.repetition_penalty : x * g_.repetition_penalty;
      x = std::clamp(x, -kMax, kMax);
    }
  }

  void warp() {
    double highest = *std::max_element(logits_.begin(), logits_.end());
    for (double& x : logits_) x = (x - highest) / g_.temperature;
    if (g_.top_k < g_.vocabulary) keep_top_k();
    if (g_.top_p < 1) keep_top_p();
    if (g_.min_p > 0) keep_min_p();
  }

  void keep_top_k() {
    sorted_ = logits_;
    auto kth = sorted_.begin() + (g_.vocabulary - g_.top_k);
    std::nth_element(sorted_.begin(), kth, sorted_.end());
    for (double& x : logits_)
      if (x < *kth) x = kNever;
  }

  void keep_top_p() {
    double total = fill_exponentials();
    order_.resize(g_.vocabulary);
    std::iota(order_.begin(), order_.end(), 0);
    double before = 0;
    for (int64_t first = 0, last; first < g_.vocabulary; first = last) {
      if (before > g_.top_p + 1e-9) {
        // The sum exceeds top_p by more than rounding errors, so all remaining tokens are excluded.
        // Usually, few tokens have to be sorted.
        for (int64_t i = first; i < g_.vocabulary; i++) logits_[order_[i]] = kNever;
        return;
      }
      last = std::min(std::max<int64_t>(kSortedAtOnce, 4 * first), g_.vocabulary);
      sort_highest(first, last);
      for (int64_t i = first; i < last; i++) {
        double probability = exponentials_[order_[i]] / total;
        // The comparison uses the rounded sum, as the Python implementation does.
        double after = before + probability;
        if (!(after - probability < g_.top_p)) logits_[order_[i]] = kNever;
        before = after;
      }
    }
  }

  // Puts the tokens of the highest logits from place `first` on in order up to `last`, and all
  // others behind them. Of equal logits, the lower token comes first.
  void sort_highest(int64_t first, int64_t last) {
    auto is_higher = [&](int64_t a, int64_t b) {
      return logits_[a] > logits_[b] || (logits_[a] == logits_[b] && a < b);
    };
    const auto begin = order_.begin();
    if (last < g_.vocabulary)
      std::nth_element(begin + first, begin + last, order_.end(), is_higher);
    std::sort(begin + first, begin + last, is_higher);
  }

  void keep_min_p() {
    double total = fill_exponentials();
    double max_probability = *std::max_element(exponentials_.begin(), exponentials_.end()) / total;
    for (int64_t v = 0; v < g_.vocabulary; v++)
      if (exponentials_[v] / total < g_.min_p * max_probability) logits_[v] = kNever;
  }

  int64_t draw(double uniform) {
    double total = fill_exponentials(), sum = 0;
    for (double& x : exponentials_) sum += x / total, x = sum;
    double threshold = uniform * sum;
    return std::upper_bound(exponentials_.begin(), exponentials_.end(), threshold) -
           exponentials_.begin();
  }

  // Computes exp(logit - maximum logit) of every token, and returns the sum.
  double fill_exponentials() {
    double max_logit = *std::max_element(logits_.begin(), logits_.end()), total = 0;
    exponentials_.resize(g_.vocabulary);
    for (int64_t v = 0; v < g_.vocabulary; v++) {
      exponentials_[v] = logits_[v] == kNever ? 0.0 : std::exp(logits_[v] - max_logit);
      total += exponentials_[v];
    }
    return total;
  }

  const Generation& g_;
  std::vector<double> logits_, exponentials_, sorted_;
  std::vector<int64_t> order_;
};

}  // namespace recurra
