// Node: one recorded op. record() is the choke point where every op enters the graph.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "macgrad/autograd/variable.h"
#include "macgrad/core/error.h"

namespace macgrad {

/// A setting of an op, for inspection: {"dim", 1}. Its text is made when it is read.
struct Attribute {
  std::string_view name;  // of static lifetime
  std::variant<bool, int64_t, double, std::string, Shape> value;
  std::string text() const;
};
using Attributes = std::vector<Attribute>;

/// A Variable kept for a gradient rule, with the version it had. Reading it after its memory was
/// overwritten is an error that names it.
class Saved {
 public:
  /// With needed = false nothing is kept (and reading is a bug).
  explicit Saved(const Variable& v, bool needed = true);
  const Variable& operator()() const;

 private:
  Variable variable_;
  uint64_t version_ = 0;
};

/// The same for what is no Variable: a mask, an index, a feature draw. `what` names it in the
/// error.
class SavedTensor {
 public:
  SavedTensor(Tensor t, std::string what);
  const Tensor& operator()() const;

 private:
  Tensor tensor_;
  uint64_t version_;
  std::string what_;
};

/// What a gradient rule sees.
class VjpContext {
 public:
  /// Gradient of the loss with respect to output i; zeros when nothing came.
  const Variable& cotangent(int i = 0) const;
  /// Output i, as a Variable of the node (so the rule can be differentiated again).
  Variable output(int i = 0) const;
  /// Whether the gradient of input i is asked for.
  bool needs(int i) const;
  const std::vector<bool>& needs() const { return needs_; }
  /// Whether this backward pass is itself recorded (second order).
  bool create_graph() const { return create_graph_; }

 private:
  friend class Engine;
  std::shared_ptr<Node> node_;
  mutable Variables cotangents_;
  std::vector<bool> needs_;
  bool create_graph_ = false;
};

/// Gradient rule: cotangents of the outputs to gradients of the inputs (undefined = zero), written
/// in Variable ops. A gradient of broadcast shape is summed to the input's shape by the engine.
using Vjp = std::function<Variables(const VjpContext&)>;
/// Rule made of one function (cotangent, context) -> gradient per input; only those that are needed
/// are called. nullptr means that the input is not differentiable: recording it with requires_grad
/// is an error.
template <class... Rule>
struct Rules {
  static_assert((!requires { typename Rule::result_type; } && ...),
                "an empty std::function would only be found by the backward pass; pass a lambda");
  explicit Rules(Rule... rules) : each(std::move(rules)...) {}
  std::tuple<Rule...> each;
};

class Node : public std::enable_shared_from_this<Node> {
 public:
  struct Input {
    std::shared_ptr<Node> node;            // maker of the input, null for leaves
    int output = 0;                        // which output of the maker
    std::shared_ptr<Variable::Meta> meta;  // of leaves that ask for a gradient
    Shape shape;
    DType dtype{};
    Device device;
    bool requires_grad = false;
  };
  struct Output {
    Shape shape;
    DType dtype{};
    Device device;
    std::shared_ptr<Variable::Meta> meta;
    Tensor value;  // kept only when the rule reads it
    uint64_t version = 0;
  };

  std::string op;
  Attributes attributes;
  std::vector<Input> inputs;
  std::vector<Output> outputs;
  Vjp vjp;
  uint64_t id = 0;           // grows in order of recording: parents have smaller ids
  uint64_t backward_of = 0;  // id of the node whose rule recorded this one, 0: forward
  std::shared_ptr<const std::string> scope;
  bool released = false;
  Node* next_deleted = nullptr;  // while nodes are being deleted

  /// "scope/op#id".
  std::string text() const;
  /// Drops the rule and what it saved.
  void release();
};

/// Whether record() enters an op with these inputs into the graph.
bool wants_recording(const Variables& inputs);
/// Enters an op into the graph and returns its outputs as Variables. Without recording (NoGrad, or
/// no input requires a gradient) they are plain values. `keep_outputs`: the rule reads output(i).
Variables record(const char* op, const Variables& inputs, const Tensors& outputs, Vjp vjp,
                 std::span<const Attribute> attributes = {}, bool keep_outputs = false);
/// An output of an op that is not recorded.
Variable unrecorded(const char* op, const Variables& inputs, const Tensor& output);
/// Throws an Error if an input without a rule requires a gradient.
void check_rules(const char* op, const Variables& inputs, std::initializer_list<bool> given);

/// One output, one function per input.
template <class... Rule>
Variable record(const char* op, const Variables& inputs, const Tensor& output, Rules<Rule...> rules,
                std::initializer_list<Attribute> attributes = {}, bool keep_outputs = false) {
  check_rules(op, inputs, {!std::is_same_v<Rule, std::nullptr_t>...});
  if (!wants_recording(inputs)) return unrecorded(op, inputs, output);
  Vjp vjp = [rules = std::move(rules)](const VjpContext& ctx) {
    Variables gradients(sizeof...(Rule));
    int i = 0;
    const auto apply = [&](const auto& rule) {
      if constexpr (!std::is_same_v<std::remove_cvref_t<decltype(rule)>, std::nullptr_t>)
        if (ctx.needs(i)) gradients[static_cast<size_t>(i)] = rule(ctx.cotangent(), ctx);
      ++i;
    };
    std::apply([&](const auto&... each) { (apply(each), ...); }, rules.each);
    return gradients;
  };
  return record(op, inputs, Tensors{output}, std::move(vjp),
                std::span(attributes.begin(), attributes.size()), keep_outputs)[0];
}

/// A tool that sees every op that enters the graph. While a Watch of it lives it is asked for each
/// op of this thread that is recorded; the latest Watch wins.
class RecordTool {
 public:
  virtual ~RecordTool() = default;
  /// Before the op enters: may put other results of the same shapes and dtypes in place (an Error
  /// otherwise). What follows is computed from them; the op's own rule may read the old ones.
  virtual void edit(const char* /*op*/, const Variables& /*inputs*/, Tensors& /*outputs*/) {}
  /// The op has entered as `node`.
  virtual void recorded(const std::shared_ptr<Node>& /*node*/, const Variables& /*inputs*/,
                        const Tensors& /*outputs*/) {}

  /// Whether a tool watches this thread.
  static bool active();

  class Watch {
   public:
    explicit Watch(RecordTool& tool);
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    RecordTool* outer_;
  };
};

/// What AnomalyMode throws.
class AnomalyError : public Error {
 public:
  AnomalyError(const std::string& message, uint64_t rule_node, size_t rule_input)
      : Error("{}", message), node(rule_node), input(rule_input) {}
  /// Of a gradient: the node whose rule gave it, 0 of a value; and for which of its inputs, kInside
  /// when it is a value within the rule.
  uint64_t node = 0;
  size_t input = 0;
  static constexpr size_t kInside = static_cast<size_t>(-1);
};

/// While alive, every recorded value and every gradient of this thread is checked for NaN and
/// infinity; the first one found is an AnomalyError naming op, scope and inputs.
class AnomalyMode {
 public:
  AnomalyMode();
  ~AnomalyMode();
  AnomalyMode(const AnomalyMode&) = delete;
  AnomalyMode& operator=(const AnomalyMode&) = delete;
  static bool active();
};

/// Id of the node whose gradient rule runs in this thread, else 0 (set by the engine).
uint64_t& current_backward_of();

}  // namespace macgrad

/// A Node in a message is its text, which costs nothing unless the message is shown.
template <>
struct fmt::formatter<macgrad::Node> : fmt::formatter<std::string> {
  auto format(const macgrad::Node& node, fmt::format_context& ctx) const {
    return fmt::formatter<std::string>::format(node.text(), ctx);
  }
};
