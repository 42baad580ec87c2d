// The quick grid (minutes instead of hours) and the settings as JSON, so that results say how they
// came about.
#include "macgrad/experiments/nmse/settings.h"

#include <nlohmann/json.hpp>

namespace macgrad::experiments {

void make_quick(NmseSettings& settings) {
  settings.quick = true;
  settings.draws = {"iid", "optimal"};
  settings.lengths = {200, 500, 1000};
  settings.features = {16, 32, 64, 128, 256, 512};
  settings.batch = 4;
  settings.heads = 4;
  settings.repeats = 10;
}

Json to_json(const NmseSettings& s) {
  return {{"kernels", s.kernels},
          {"maps", s.maps},
          {"matrices", s.matrices},
          {"draws", s.draws},
          {"lengths", s.lengths},
          {"features", s.features},
          {"batch", s.batch},
          {"heads", s.heads},
          {"dim", s.dim},
          {"repeats", s.repeats},
          {"p", s.p},
          {"presbn", s.presbn},
          {"presbn_eps", s.eps},
          {"logit_scale", s.logit_scale},
          {"gradients", s.gradients},
          {"quick", s.quick},
          {"common", to_json(s.common)}};
}

}  // namespace macgrad::experiments
