// Running a fused op: its kernel where one takes the operands, its composite otherwise (said once
// on stderr, an error under MACGRAD_FUSED=strict). The vjp runs the backward kernel, itself an op
// whose own gradient comes from differentiating the composite.
#include "macgrad/autograd/fused.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>

#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/autograd/scope.h"

namespace macgrad {
namespace {

thread_local int unfused_depth = 0;

bool strict() {
  const char* value = std::getenv("MACGRAD_FUSED");
  return value && std::string(value) == "strict";
}

void log_fallback(const std::string& op, const std::string& reason) {
  if (strict())
    throw Error("[{}] has no fused kernel for these operands ({}) and MACGRAD_FUSED=strict{}", op,
                reason, scope_suffix());
  static std::mutex mutex;
  static std::set<std::string> said;
  const std::lock_guard lock(mutex);
  // fputs: a log that cannot be written is no reason to throw.
  if (said.insert(op + reason).second)
    std::fputs(fmt::format("note: {} runs as its composite: {}\n", op, reason).c_str(), stderr);
}

Tensors values(const Variables& variables) {
  Tensors list;
  list.reserve(variables.size());
  for (const Variable& v : variables) list.push_back(v.value());
  return list;
}

Support kernels_support(const FusedOp& op, const Tensors& x, const Variables& inputs) {
  Support forward = op.supports(x);
  return forward && wants_recording(inputs) ? op.supports_backward(x) : forward;
}

Variables run_composite(const FusedOp& op, const Variables& inputs) {
  const Scope scope(op.name());
  Variables outputs = op.composite(inputs);
  if (!outputs.empty() && outputs[0].node())
    outputs[0].node()->attributes.push_back({"path", "composite"});
  return outputs;
}

// Gradients of the composite at `inputs`. Fresh aliases make each operand a variable of its own,
// also when the same Variable is passed twice.
Variables differentiate(const FusedOp& op, const Variables& inputs, const Variables& cotangents,
                        const std::vector<bool>& needs, bool create_graph) {
  const EnableGrad mode;
  Variables aliases, wanted;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!needs[i]) {
      aliases.push_back(inputs[i].defined() ? inputs[i].detach() : inputs[i]);
      // Operands that are not asked for but belong to the graph must stay in it.
      if (create_graph && inputs[i].defined() && inputs[i].requires_grad())
        aliases.back() = identity(inputs[i]);
      continue;
    }
    aliases.push_back(create_graph && inputs[i].requires_grad()
                          ? identity(inputs[i])
                          : Variable(inputs[i].value(), true));
    wanted.push_back(aliases.back());
  }
  const Variables outputs = run_composite(op, aliases);
  GradOptions options;
  options.create_graph = create_graph;
  options.allow_unused = true;
  Variables found;
  // Outputs that do not depend on any operand have no gradient to give.
  Variables live, live_cotangents;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!outputs[i].requires_grad()) continue;
    live.push_back(outputs[i]);
    live_cotangents.push_back(cotangents[i]);
  }
  if (live.empty()) return Variables(inputs.size());
  found = grad(live, wanted, live_cotangents, options);
  Variables result(inputs.size());
  for (size_t i = 0, w = 0; i < inputs.size(); ++i)
    if (needs[i]) result[i] = found[w++];
  return result;
}

template <class List>
List front(const List& all, size_t count) {
  return List(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(count));
}
template <class List>
List rest(const List& all, size_t count) {
  return List(all.begin() + static_cast<std::ptrdiff_t>(count), all.end());
}

// The backward kernel as an op of (inputs…, cotangents…).
class BackwardOp : public FusedOp {
 public:
  BackwardOp(std::shared_ptr<const FusedOp> op, const Result& result, size_t inputs,
             const std::vector<bool>& needs)
      : op_(std::move(op)),
        name_(std::string(op_->name()) + "_backward"),
        result_(result),
        inputs_(inputs),
        needs_(needs) {}

  const char* name() const override { return name_.c_str(); }
  Attributes attributes() const override { return op_->attributes(); }
  Result forward(const Tensors& all) override {
    const Tensors gradients =
        op_->backward(front(all, inputs_), result_, rest(all, inputs_), needs_);
    Result needed;
    for (size_t i = 0; i < needs_.size(); ++i)
      if (needs_[i]) needed.outputs.push_back(gradients[i]);
    return needed;
  }
  bool has_backward() const override { return false; }
  Variables composite(const Variables& all) const override {
    const Variables x = front(all, inputs_);
    const Variables gradients =
        differentiate(*op_, x, rest(all, inputs_), needs_, /*create_graph=*/true);
    Variables kept;
    for (size_t i = 0; i < needs_.size(); ++i) {
      if (!needs_[i]) continue;
      kept.push_back(gradients[i].defined()
                         ? gradients[i]
                         : Variable(Tensor::zeros(x[i].shape(), x[i].dtype(), x[i].device())));
    }
    return kept;
  }

 private:
  std::shared_ptr<const FusedOp> op_;
  std::string name_;
  Result result_;
  size_t inputs_;
  std::vector<bool> needs_;
};

// What the rule of a fused op keeps.
struct Kept {
  std::shared_ptr<FusedOp> op;
  std::vector<Saved> inputs;
  std::vector<SavedTensor> constants;
  FusedOp::Result result;
  std::vector<uint64_t> versions = versions_now();

  // The backward kernel reads results and statistics as well as operands.
  std::vector<uint64_t> versions_now() const {
    std::vector<uint64_t> now;
    now.reserve(result.outputs.size() + result.saved.size());
    for (const Tensors* list : {&result.outputs, &result.saved})
      for (const Tensor& t : *list) now.push_back(t.version());
    return now;
  }

  Variables operator()(const VjpContext& ctx) const {
    require(versions_now() == versions,
            "the result of {} was overwritten in place after it was saved for its gradient: run "
            "backward before changing it, or compute the forward pass again",
            op->name());
    for (const SavedTensor& constant : constants) constant();
    Variables operands, cotangents;
    operands.reserve(inputs.size());
    for (const Saved& s : inputs) operands.push_back(s());
    for (size_t i = 0; i < result.outputs.size(); ++i)
      cotangents.push_back(ctx.cotangent(static_cast<int>(i)));
    if (!op->has_backward())
      return differentiate(*op, operands, cotangents, ctx.needs(), ctx.create_graph());
    Variables gradients(operands.size());
    if (!ctx.create_graph()) {
      const Tensors g = op->backward(values(operands), result, values(cotangents), ctx.needs());
      for (size_t i = 0; i < g.size(); ++i)
        if (ctx.needs(static_cast<int>(i)) && g[i].defined()) gradients[i] = Variable(g[i]);
      return gradients;
    }
    const size_t count = operands.size();
    operands.insert(operands.end(), cotangents.begin(), cotangents.end());
    const Variables found =
        apply_fused(std::make_shared<BackwardOp>(op, result, count, ctx.needs()), operands);
    for (size_t i = 0, w = 0; i < count; ++i)
      if (ctx.needs(static_cast<int>(i))) gradients[i] = found[w++];
    return gradients;
  }
};

}  // namespace

Tensors FusedOp::backward(const Tensors&, const Result&, const Tensors&,
                          const std::vector<bool>&) const {
  throw Error("[{}] has no backward kernel: override backward() or has_backward()", name());
}

Unfused::Unfused() {
  ++unfused_depth;
}
Unfused::~Unfused() {
  --unfused_depth;
}

Variables apply_fused(const std::shared_ptr<FusedOp>& op, const Variables& inputs) {
  if (unfused_depth > 0) return run_composite(*op, inputs);
  const Tensors x = values(inputs);
  if (const Support support = kernels_support(*op, x, inputs); !support) {
    log_fallback(op->name(), support.reason);
    return run_composite(*op, inputs);
  }
  FusedOp::Result result = op->forward(x);
  if (!wants_recording(inputs)) return record(op->name(), inputs, result.outputs, nullptr);
  const Tensors outputs = result.outputs;
  return record(op->name(), inputs, outputs,
                Kept{.op = op,
                     .inputs = std::vector<Saved>(inputs.begin(), inputs.end()),
                     .constants = op->constants(),
                     .result = std::move(result)},
                op->attributes());
}

}  // namespace macgrad
