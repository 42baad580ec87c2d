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
  for (const Variable& v : variables) list.push_back(v.value());
  return list;
}

Support kernels_support(const FusedOp& op, const Tensors& x, const Variables& inputs) {
  const Support forward = op.supports ? op.supports(x) : Support{};
  if (!forward || !op.supports_backward || !wants_recording(inputs)) return forward;
  return op.supports_backward(x);
}

Variables run_composite(const FusedOp& op, const Variables& inputs) {
  const Scope scope(op.name);
  Variables outputs = op.composite(inputs);
  if (!outputs.empty() && outputs[0].node())
    outputs[0].node()->attributes.emplace_back("path", "composite");
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

// The backward kernel as an op of (inputs…, cotangents…).
FusedOp backward_op(const FusedOp& op, const FusedOp::Forward& result, size_t inputs,
                    const std::vector<bool>& needs) {
  FusedOp back;
  back.name = op.name + "_backward";
  back.attributes = op.attributes;
  const auto front = [inputs]<class List>(const List& all) {
    return List(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(inputs));
  };
  const auto rest = [inputs]<class List>(const List& all) {
    return List(all.begin() + static_cast<std::ptrdiff_t>(inputs), all.end());
  };
  back.forward = [op, result, needs, front, rest](const Tensors& all) {
    Tensors gradients = op.backward(front(all), result, rest(all), needs);
    FusedOp::Forward f;
    for (size_t i = 0; i < needs.size(); ++i)
      if (needs[i]) f.outputs.push_back(gradients[i]);
    return f;
  };
  back.composite = [op, needs, front, rest](const Variables& all) {
    const Variables x = front(all);
    Variables gradients = differentiate(op, x, rest(all), needs, /*create_graph=*/true);
    Variables kept;
    for (size_t i = 0; i < needs.size(); ++i) {
      if (!needs[i]) continue;
      kept.push_back(gradients[i].defined()
                         ? gradients[i]
                         : Variable(Tensor::zeros(x[i].shape(), x[i].dtype(), x[i].device())));
    }
    return kept;
  };
  return back;
}

}  // namespace

Unfused::Unfused() {
  ++unfused_depth;
}
Unfused::~Unfused() {
  --unfused_depth;
}

Variables apply_fused(const FusedOp& op, const Variables& inputs) {
  if (unfused_depth > 0) return run_composite(op, inputs);
  const Tensors x = values(inputs);
  if (const Support support = kernels_support(op, x, inputs); !support) {
    log_fallback(op.name, support.reason);
    return run_composite(op, inputs);
  }
  FusedOp::Forward result = op.forward(x);
  // The backward kernel reads results and statistics as well as operands.
  const auto versions_of = [](const FusedOp::Forward& f) {
    std::vector<uint64_t> versions;
    for (const Tensors* list : {&f.outputs, &f.saved})
      for (const Tensor& t : *list) versions.push_back(t.version());
    return versions;
  };
  std::vector<Saved> saved;
  saved.reserve(inputs.size());
  for (const Variable& v : inputs) saved.emplace_back(v);
  const Tensors outputs = result.outputs;
  Vjp vjp = [op, saved = std::move(saved), versions_of, versions = versions_of(result),
             result = std::move(result)](const VjpContext& ctx) {
    require(versions_of(result) == versions,
            "the result of {} was overwritten in place after it was saved for its gradient: run "
            "backward before changing it, or compute the forward pass again",
            op.name);
    for (const SavedTensor& constant : op.constants) constant();
    Variables operands, cotangents;
    for (const Saved& s : saved) operands.push_back(s());
    for (size_t i = 0; i < result.outputs.size(); ++i)
      cotangents.push_back(ctx.cotangent(static_cast<int>(i)));
    if (!op.backward)
      return differentiate(op, operands, cotangents, ctx.needs(), ctx.create_graph());
    Variables gradients(operands.size());
    if (!ctx.create_graph()) {
      const Tensors g = op.backward(values(operands), result, values(cotangents), ctx.needs());
      for (size_t i = 0; i < g.size(); ++i)
        if (ctx.needs(static_cast<int>(i)) && g[i].defined()) gradients[i] = Variable(g[i]);
      return gradients;
    }
    const size_t count = operands.size();
    operands.insert(operands.end(), cotangents.begin(), cotangents.end());
    const Variables found = apply_fused(backward_op(op, result, count, ctx.needs()), operands);
    for (size_t i = 0, w = 0; i < count; ++i)
      if (ctx.needs(static_cast<int>(i))) gradients[i] = found[w++];
    return gradients;
  };
  return record(op.name.c_str(), inputs, outputs, std::move(vjp), op.attributes);
}

}  // namespace macgrad
