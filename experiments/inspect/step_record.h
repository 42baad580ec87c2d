// One recorded training step and what is written of it: the JSON of page and graph.json (its
// format: page/README.md), gradients.csv, the tensors, and the graph in Graphviz's language.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "macgrad/autograd/graph_record.h"
#include "macgrad/experiments/inspect/model_step.h"

namespace macgrad::experiments {

/// Largest differences of a step run with its kernels from the same step run as composites.
struct FusedDifferences {
  std::unordered_map<uint64_t, double> results;  // by the id of the composite's last node
  double loss = 0;
  double gradient = 0;    // of any parameter's gradient
  std::string parameter;  // whose that is
};

struct RecordedStep {
  int64_t step = 0;
  double loss = 0, gradient_norm = 0, learning_rate = 0, seconds = 0;
  GraphRecord graph;
  GradRecord gradients;
  FusedDifferences fused;

  /// Gradients by place: of output `output` of a node, of a leaf; nullptr without one.
  const GradRecord::Entry* gradient(uint64_t node, int output) const;
  const GradRecord::Entry* gradient(const Variable::Meta* leaf) const;
  /// Fills the two lookups; call once when the pass is recorded.
  void index();

 private:
  std::unordered_map<uint64_t, std::vector<const GradRecord::Entry*>> by_node_;
  std::unordered_map<const Variable::Meta*, const GradRecord::Entry*> by_leaf_;
};

/// Runs the step under way of `model`, leaving its gradients in grad(), which must be clear. With
/// `open`, fused ops are recorded as their composites, and the step is run with their kernels as
/// well, for `fused`; grad() then has the gradients of the kernels, as training would.
std::unique_ptr<RecordedStep> record_step(ModelStep& model, bool open);

/// min, max, mean, …; `details` adds the histogram and, of matrices, the image.
Json numbers_of(const Tensor& t, bool details);
/// A step as the page reads it.
Json to_json(const RecordedStep& step, bool details);

/// gradients.csv: an op's output or a leaf a row, those without a gradient left out.
void write_gradients_csv(const RecordedStep& step, const std::string& path);
/// Every gradient, or every value, by its key.
void save_gradients(const RecordedStep& step, const std::string& path);
void save_values(const RecordedStep& step, const std::string& path);
/// Ops in a cluster a scope, edges with forward rms and backward l2.
void write_dot(const RecordedStep& step, const std::string& path);

/// The key of an op's output: the op's, with [1] for the second and so on.
std::string output_key(const std::string& op, int output);

}  // namespace macgrad::experiments
