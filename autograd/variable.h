// Variable: a value in a graph. It holds a Tensor, shared meta data (name, gradient, hooks) and the
// Node that made it. Ops exist once, on Variables (autograd/ops.h); "does this record?" is visible
// in the type. Gradients come from autograd/engine.h.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "macgrad/core/tensor.h"

namespace macgrad {

class Node;
class Variable;
using Variables = std::vector<Variable>;

/// Sees a gradient; a defined result replaces it (same shape and dtype).
using Hook = std::function<Variable(const Variable& gradient)>;

class Variable {
 public:
  /// Undefined. As a gradient it means "zero".
  Variable() = default;
  /// A leaf. With requires_grad the dtype must be floating.
  explicit Variable(Tensor value, bool requires_grad = false, std::string name = "");

  bool defined() const { return value_.defined(); }
  const Tensor& value() const { return value_; }
  const Shape& shape() const { return value_.shape(); }
  int rank() const { return value_.rank(); }
  int64_t size(int dim) const { return value_.size(dim); }
  int64_t numel() const { return value_.numel(); }
  DType dtype() const { return value_.dtype(); }
  Device device() const { return value_.device(); }
  double item() const { return value_.item(); }

  /// True for a leaf that asks for a gradient and for everything computed from one.
  bool requires_grad() const;
  bool is_leaf() const { return node_ == nullptr; }
  /// For leaves only.
  void set_requires_grad(bool value) const;
  /// Replaces the value of a leaf (loading, moving between devices, casting).
  void set_value(Tensor value);

  /// The gradient left by backward(); undefined before. To be read only: it may share memory with
  /// other gradients.
  const Variable& grad() const;
  void set_grad(Variable gradient) const;
  void zero_grad() const { set_grad(Variable()); }
  /// Keeps the gradient of an intermediate in grad() as well.
  void retain_grad() const;

  /// This value without its history.
  Variable detach() const { return Variable(value_); }

  /// Sets the name shown by errors, records and inspection; returns this Variable.
  const Variable& named(std::string name) const;
  /// The name given, else "scope/op#id", else "leaf".
  std::string name() const;

  /// Called with this Variable's whole gradient in each backward pass. Returns an id for
  /// remove_hook.
  int add_hook(Hook hook) const;
  void remove_hook(int id) const;

  const std::shared_ptr<Node>& node() const { return node_; }
  int output_index() const { return output_; }

  /// Shared by all copies of a Variable.
  struct Meta;
  const std::shared_ptr<Meta>& meta() const { return meta_; }
  /// For the engine and record(): the Variable that is output `output` of `node`.
  Variable(Tensor value, std::shared_ptr<Meta> meta, std::shared_ptr<Node> node, int output);

 private:
  Tensor value_;
  std::shared_ptr<Meta> meta_;
  std::shared_ptr<Node> node_;
  int output_ = 0;
};

struct Variable::Meta {
  std::string name;
  bool requires_grad = false;
  bool retain_grad = false;
  Variable grad;
  std::vector<std::pair<int, Hook>> hooks;
  int next_hook = 0;
};

/// Whether ops record. NoGrad switches recording off in this thread while alive, EnableGrad on.
bool grad_enabled();
class GradMode {
 public:
  explicit GradMode(bool enabled);
  ~GradMode();
  GradMode(const GradMode&) = delete;
  GradMode& operator=(const GradMode&) = delete;

 private:
  bool previous_;
};
struct NoGrad : GradMode {
  NoGrad() : GradMode(false) {}
};
struct EnableGrad : GradMode {
  EnableGrad() : GradMode(true) {}
};

}  // namespace macgrad

/// A Variable in a message is its name, which costs nothing unless the message is shown.
template <>
struct fmt::formatter<macgrad::Variable> : fmt::formatter<std::string> {
  auto format(const macgrad::Variable& v, fmt::format_context& ctx) const {
    return fmt::formatter<std::string>::format(v.name(), ctx);
  }
};
