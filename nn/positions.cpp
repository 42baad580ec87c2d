// Position vectors.
#include "macgrad/nn/positions.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "macgrad/autograd/ops.h"
#include "macgrad/nn/init.h"

namespace macgrad::nn {

PositionKind parse_positions(const std::string& name) {
  if (name == "sinusoidal") return PositionKind::sinusoidal;
  if (name == "learned") return PositionKind::learned;
  if (name == "none") return PositionKind::none;
  throw Error("positions '{}' are unknown; use sinusoidal, learned or none", name);
}

Tensor sinusoidal_positions(int64_t length, int64_t width) {
  std::vector<double> values(static_cast<size_t>(length * width));
  for (int64_t t = 0; t < length; ++t) {
    for (int64_t c = 0; c < width; ++c) {
      const double frequency =
          std::pow(10000.0, -static_cast<double>(c - c % 2) / static_cast<double>(width));
      const double angle = static_cast<double>(t) * frequency;
      values[static_cast<size_t>(t * width + c)] = c % 2 == 0 ? std::sin(angle) : std::cos(angle);
    }
  }
  return Tensor::from_values(values, Shape{length, width}, DType::float32);
}

Positions::Positions(Module* parent, std::string name, PositionKind kind, int64_t max_length,
                     int64_t width, ModelRandom& random)
    : Module(parent, std::move(name)), kind_(kind), width_(width) {
  if (kind == PositionKind::learned)
    weight.emplace(this, "weight",
                   normal(Shape{max_length, width}, random.init(),
                          1.0 / std::sqrt(static_cast<double>(width))));
}

Variable Positions::forward(const Variable& x, int64_t start) const {
  const auto in_scope = scope();
  if (kind_ == PositionKind::none) return in_scope.result(x);
  const int64_t end = start + x.size(1);
  if (kind_ == PositionKind::learned) {
    check(end <= weight->size(0),
          "[positions] a sequence of {} places, but learned positions exist for {}; raise "
          "max_length",
          end, weight->size(0));
    return in_scope.result(add(x, slice(*weight, 0, start, end)));
  }
  auto table = std::find_if(tables_.begin(), tables_.end(), [&](const Tensor& t) {
    return t.size(0) >= end && t.dtype() == x.dtype() && t.device() == x.device();
  });
  if (table == tables_.end()) {
    int64_t length = 64;
    while (length < end) length *= 2;
    tables_.push_back(sinusoidal_positions(length, width_).to(x.dtype()).to(x.device()));
    table = std::prev(tables_.end());
  }
  return in_scope.result(add(x, Variable(table->slice(0, start, end))));
}

}  // namespace macgrad::nn
