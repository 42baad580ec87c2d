// Bias and variance of RMFA over its draws. One draw estimates the kernel without bias, and so the
// numerators Σ_j K̂_ij v_j and denominators Σ_j K̂_ij; their quotient, the output, and its gradients
// are biased, because the expectation of a quotient is not the quotient of the expectations:
//   E[N̂/D̂] - N/D ≈ N Var(D̂)/D³ - Cov(N̂, D̂)/D²                      (second order in the errors)
// Shape letters: H heads, n length, d head dimension, D features.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "macgrad/autograd/attention.h"
#include "macgrad/experiments/common/arguments.h"

namespace macgrad::experiments {

struct BiasSettings {
  BiasSettings() { common.precision = "float64"; }
  CommonOptions common;
  std::string kernel = "exp";
  std::string draws = "iid";
  int64_t features = 128;
  int64_t length = 64;
  int64_t heads = 4;
  int64_t dim = 64;
  int64_t redraws = 1000;
  double p = 2.0;
  double logit_scale = 1.0;
  std::string denominator = "floor";
  bool causal = false;
};
Json to_json(const BiasSettings& settings);

/// What R draws say of one vector: Euclidean norms over the d entries and the heads of a position.
struct BiasRow {
  std::string quantity;  // numerator, denominator, output, dq, dk, dv
  int64_t position = 0;  // -1: all positions together
  double exact = 0;      // of the exact value
  double bias = 0;       // of (mean over draws - exact); what chance alone gives is bias_se
  double bias_se = 0;    // √(Σ variance / R)
  double deviation = 0;  // √(Σ variance) of one draw
  double predicted = 0;  // of the output's bias by the formula above; NaN for the others
};

struct BiasResult {
  std::vector<BiasRow> rows;           // by quantity, then by position, all positions first
  int64_t draws = 0;                   // fewer than asked for when stopped
  DenominatorStatistics denominators;  // over all draws
};

/// Fresh q, k (unit norm, by row preSBN), v and cotangent from the seed; draws of step 1 … redraws.
/// `progress` is called after each draw with their number, and stops the rest by false.
BiasResult measure_bias(const BiasSettings& settings,
                        const std::function<bool(int64_t done)>& progress);

/// Measures, prints, and writes bias.csv, bias.json and the curves bias.svg and bias.png.
int run_bias(BiasSettings& settings);

/// `inspect bias` with its command line; argv[0] is "bias".
int bias_command(int argc, const char* const* argv);

}  // namespace macgrad::experiments
