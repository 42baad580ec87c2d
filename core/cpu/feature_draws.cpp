// Feature draws (core/feature_draw.h), one map after the other.
#include <vector>

#include "macgrad/core/feature_draw.h"

namespace macgrad::cpu {

void draw_features(InList laws, InOutList omegas, InOutList weights, InOutList layouts,
                   const std::vector<FeatureDrawArgs>& args) {
  check_feature_draws(laws, omegas, weights, layouts, args);
  std::vector<int64_t> groups(static_cast<size_t>(4 * kLawDegrees));
  for (size_t i = 0; i < args.size(); ++i) {
    const auto size = static_cast<size_t>(hadamard_size(args[i].head_dim));
    std::vector<int32_t> tail(static_cast<size_t>(args[i].tail_count)), order(size);
    std::vector<int8_t> signs(size);
    dispatch_floating(omegas.list[i].dtype(), "draw_features", [&]<class T>() {
      draw_law(feature_draw_operands<T>(laws.list[i], omegas.list[i], weights.list[i],
                                        layouts.list[i], args[i]),
               {degree_groups(groups.data()), {signs.data(), order.data()}, tail.data()}, Alone{});
    });
  }
}

}  // namespace macgrad::cpu
