// Sequential: modules and functions applied one after another.
#pragma once

#include <memory>

#include "macgrad/nn/module.h"

namespace macgrad::nn {

/// Owns its layers, which are named by their position, "0", "1", …:
///
///   Sequential mlp;
///   mlp.add<Linear>(2, 32, random);
///   mlp.add(relu);
///   mlp.add<Linear>(32, 1, random);   // parameters "2.weight" and "2.bias"
class Sequential : public Module {
 public:
  using Module::Module;

  /// Appends M(this, position, args...), a module with `Variable forward(const Variable&)`. The
  /// reference is valid as long as this Sequential.
  template <class M, class... Args>
  M& add(Args&&... args) {
    auto owned = std::make_unique<M>(this, next_name(), std::forward<Args>(args)...);
    M& layer = *owned;
    owned_.push_back(std::move(owned));
    steps_.push_back([&layer](const Variable& x) { return layer.forward(x); });
    return layer;
  }
  /// Appends a function, such as relu or a lambda; it takes a position as a module does.
  void add(std::function<Variable(const Variable&)> function);

  /// The last layer's result; x itself when there is no layer.
  Variable forward(const Variable& x) const;

 private:
  std::string next_name() const { return std::to_string(steps_.size()); }

  std::vector<std::unique_ptr<Module>> owned_;
  std::vector<std::function<Variable(const Variable&)>> steps_;
};

}  // namespace macgrad::nn
