// `inspect explode`: trains until a value or a gradient is not finite, and says where that began.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "macgrad/experiments/inspect/model_step.h"

namespace macgrad::experiments {

/// A value or gradient on the way to what is not finite.
struct ChainLink {
  std::string key;
  double min = 0, max = 0;
  int64_t non_finite = 0;
};

struct Explosion {
  int64_t step = 0;
  bool gradient = false;  // else a value
  std::string key;        // the first that is not finite, in the order in which they are made
  std::string op;         // that made it; for a gradient the op whose rule did, "": none to blame
  std::string scope;
  std::vector<ChainLink> inputs;  // of that op; for a gradient the gradient it was handed, first
  // From there back, always by the largest magnitude: to a leaf, or for a gradient to the loss.
  std::vector<ChainLink> chain;
};

/// Records the step under way of `model` and looks for what is not finite; nothing when all is.
std::optional<Explosion> find_explosion(ModelStep& model);

/// argv[0] is "explode". Exit code kFound: something was not finite, 0: nothing was.
int explode_command(int argc, const char* const* argv);

}  // namespace macgrad::experiments
