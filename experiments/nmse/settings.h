// What one run of the NMSE experiment does (Macformer, arXiv 2408.11656, Figure 4).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "macgrad/experiments/common/arguments.h"

namespace macgrad::experiments {

struct NmseSettings {
  CommonOptions common;
  std::vector<std::string> kernels{"exp"};
  std::vector<std::string> maps{"maclaurin"};
  std::vector<std::string> matrices{"auto"};  // of maps with a projection matrix; auto: the map's
  std::vector<std::string> draws{"iid"};      // of the map maclaurin
  std::vector<int64_t> lengths{200, 500, 1000, 2000, 4000};
  std::vector<int64_t> features{16, 32, 64, 128, 256, 512, 1024};
  int64_t batch = 16;
  int64_t heads = 8;
  int64_t dim = 64;
  int64_t repeats = 100;
  double p = 2.0;
  std::string presbn = "batch";  // batch | row | none
  double eps = 1e-12;            // of preSBN
  double logit_scale = 1.0;
  bool gradients = false;
  bool quick = false;
};

/// The grid of --quick: small enough for two minutes on two cores.
void make_quick(NmseSettings& settings);

Json to_json(const NmseSettings& settings);

}  // namespace macgrad::experiments
