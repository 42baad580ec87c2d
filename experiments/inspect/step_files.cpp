// The files of a recorded step.
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "macgrad/core/safetensors.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/inspect/step_record.h"

namespace macgrad::experiments {
namespace {

constexpr int64_t kBins = 32;
constexpr int64_t kPixels = 48;  // of an image's longer side, at most

Json histogram(const std::vector<double>& values, const GradStatistics& s) {
  double low = s.min, high = s.max;
  if (low == high) {
    low -= 0.5;
    high += 0.5;
  }
  std::vector<int64_t> counts(kBins);
  const double scale = kBins / (high - low);
  // Values so large or so close that bins have no width: one bin has them all.
  const bool one_bin = !(high > low) || !std::isfinite(scale) || scale == 0;
  for (const double v : values) {
    if (!std::isfinite(v)) continue;
    const auto bin = one_bin ? 0 : static_cast<int64_t>((v - low) * scale);
    ++counts[static_cast<size_t>(std::clamp<int64_t>(bin, 0, kBins - 1))];
  }
  return {{"low", low}, {"high", high}, {"counts", counts}};
}

std::string base64(const std::vector<int8_t>& bytes) {
  static constexpr char kDigits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t three = 0;
    for (size_t j = 0; j < 3; ++j)
      three = three << 8 | (i + j < bytes.size() ? static_cast<uint8_t>(bytes[i + j]) : 0U);
    for (size_t j = 0; j < 4; ++j)
      text += i + j <= bytes.size() ? kDigits[three >> (18 - 6 * j) & 63] : '=';
  }
  return text;
}

// The last two dimensions at index 0 of the others; a pixel is the entry of largest magnitude of
// its block, so that a single large gradient is seen.
Json image(const Tensor& t, const std::vector<double>& values) {
  const int64_t rows = t.size(-2), columns = t.size(-1);
  const int64_t out_rows = std::min(rows, kPixels), out_columns = std::min(columns, kPixels);
  double scale = 0;
  for (int64_t i = 0; i < rows * columns; ++i)
    if (const double v = std::abs(values[static_cast<size_t>(i)]); std::isfinite(v))
      scale = std::max(scale, v);
  std::vector<int8_t> pixels;
  for (int64_t r = 0; r < out_rows; ++r) {
    for (int64_t c = 0; c < out_columns; ++c) {
      double largest = 0;
      for (int64_t i = r * rows / out_rows; i < (r + 1) * rows / out_rows; ++i)
        for (int64_t j = c * columns / out_columns; j < (c + 1) * columns / out_columns; ++j) {
          const double v = values[static_cast<size_t>(i * columns + j)];
          if (!std::isfinite(v) || std::abs(v) > std::abs(largest)) largest = v;
          if (!std::isfinite(largest)) break;
        }
      pixels.push_back(!std::isfinite(largest) ? int8_t{-128}
                       : scale == 0            ? int8_t{0}
                                    : static_cast<int8_t>(std::lround(127.0 * largest / scale)));
    }
  }
  std::string slice = "[";
  for (int d = 0; d < t.rank(); ++d)
    slice += fmt::format("{}{}", d == 0 ? "" : ", ", d < t.rank() - 2 ? "0" : ":");
  return {{"rows", out_rows},     {"columns", out_columns}, {"of", {rows, columns}},
          {"slice", slice + "]"}, {"scale", scale},         {"pixels", base64(pixels)}};
}

Json value_json(const Tensor& value, const GradRecord::Entry* gradient, bool details) {
  Json json;
  json["shape"] = Json::array();
  for (int d = 0; d < value.rank(); ++d) json["shape"].push_back(value.size(d));
  json["dtype"] = name(value.dtype());
  json["value"] = numbers_of(value, details);
  json["gradient"] = gradient ? numbers_of(gradient->gradient, details) : Json(nullptr);
  return json;
}

// Where input i of an op comes from: [op, output], [-1, leaf], or [-2, 0] for none given.
Json input_json(const GraphRecord& graph, const GraphRecord::Op& op, size_t i) {
  if (op.leaves[i] != GraphRecord::kNoLeaf) return {-1, op.leaves[i]};
  const Node::Input& in = op.node->inputs[i];
  const GraphRecord::Op* maker = in.node ? graph.find(in.node->id) : nullptr;
  if (!maker) return {-2, 0};
  return {maker - graph.ops().data(), in.output};
}

std::string shape_text(const Tensor& t) {
  std::string text;
  for (int d = 0; d < t.rank(); ++d) text += fmt::format("{}{}", d == 0 ? "" : "x", t.size(d));
  return text;
}

std::string leaf_scope(const std::string& key) {
  const size_t end = key.find_last_of("./");
  return end == std::string::npos ? "" : key.substr(0, end);
}

// f(key, op or nullptr, value, gradient or nullptr) for every output of every op and every leaf.
template <class F>
void each_value(const RecordedStep& step, const F& f) {
  const std::vector<std::string> ops = step.graph.op_keys(), leaves = step.graph.leaf_keys();
  for (size_t i = 0; i < ops.size(); ++i) {
    const GraphRecord::Op& op = step.graph.ops()[i];
    for (size_t o = 0; o < op.outputs.size(); ++o)
      f(output_key(ops[i], static_cast<int>(o)), &op, op.outputs[o],
        step.gradient(op.node->id, static_cast<int>(o)));
  }
  for (size_t l = 0; l < leaves.size(); ++l) {
    const GraphRecord::Leaf& leaf = step.graph.leaves()[l];
    f(leaves[l], nullptr, leaf.value, step.gradient(leaf.meta.get()));
  }
}

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result + "\"";
}

}  // namespace

std::string output_key(const std::string& op, int output) {
  return output == 0 ? op : fmt::format("{}[{}]", op, output);
}

Json numbers_of(const Tensor& t, bool details) {
  const GradStatistics s = statistics(t);
  Json json{{"min", s.min},
            {"max", s.max},
            {"mean", s.mean},
            {"rms", s.rms},
            {"l2", s.l2},
            {"zeros", s.zeros},
            {"non_finite", s.non_finite},
            {"count", s.count}};
  if (!details || s.count == 0 || s.count == s.non_finite) return json;
  const auto values = t.to_vector<double>();
  json["histogram"] = histogram(values, s);
  if (t.rank() >= 2) json["image"] = image(t, values);
  return json;
}

Json to_json(const RecordedStep& step, bool details) {
  Json json{{"step", step.step},
            {"loss", step.loss},
            {"gradient_norm", step.gradient_norm},
            {"learning_rate", step.learning_rate},
            {"seconds", step.seconds},
            {"ops", Json::array()},
            {"leaves", Json::array()}};
  const std::vector<std::string> keys = step.graph.op_keys(), leaf_keys = step.graph.leaf_keys();
  for (size_t i = 0; i < keys.size(); ++i) {
    const GraphRecord::Op& op = step.graph.ops()[i];
    const uint64_t id = op.node->id;
    Json one{{"key", keys[i]}, {"scope", *op.node->scope}, {"op", op.node->op}};
    one["attributes"] = Json::array();
    for (const Attribute& a : op.node->attributes) one["attributes"].push_back({a.name, a.text()});
    one["inputs"] = Json::array();
    for (size_t k = 0; k < op.leaves.size(); ++k)
      one["inputs"].push_back(input_json(step.graph, op, k));
    one["outputs"] = Json::array();
    for (size_t o = 0; o < op.outputs.size(); ++o)
      one["outputs"].push_back(
          value_json(op.outputs[o], step.gradient(id, static_cast<int>(o)), details));
    one["seconds"] = op.seconds;
    const double rule = step.gradients.rule_seconds(id);
    one["backward_seconds"] = rule > 0 ? Json(rule) : Json(nullptr);
    one["bytes"] = op.bytes;
    if (const auto it = step.fused.results.find(id); it != step.fused.results.end())
      one["fused_difference"] = it->second;
    json["ops"].push_back(std::move(one));
  }
  for (size_t l = 0; l < leaf_keys.size(); ++l) {
    const GraphRecord::Leaf& leaf = step.graph.leaves()[l];
    Json one{{"key", leaf_keys[l]},
             {"scope", leaf_scope(leaf_keys[l])},
             {"kind", leaf.requires_grad ? "parameter" : "constant"}};
    one.update(value_json(leaf.value, step.gradient(leaf.meta.get()), details));
    json["leaves"].push_back(std::move(one));
  }
  return json;
}

void write_gradients_csv(const RecordedStep& step, const std::string& path) {
  std::vector<std::vector<CsvValue>> rows;
  each_value(step, [&](const std::string& key, const GraphRecord::Op* op, const Tensor& value,
                       const GradRecord::Entry* gradient) {
    if (!gradient) return;
    const GradStatistics& s = gradient->stats;
    rows.push_back({key, op ? op->node->op : "leaf", shape_text(value), s.min, s.max, s.mean, s.rms,
                    s.l2, s.zeros, s.non_finite});
  });
  CsvWriter(path, {"name", "op", "shape", "min", "max", "mean", "rms", "l2", "zeros", "non_finite"},
            rows);
}

void save_gradients(const RecordedStep& step, const std::string& path) {
  std::map<std::string, Tensor> tensors;
  each_value(step, [&](const std::string& key, const GraphRecord::Op*, const Tensor&,
                       const GradRecord::Entry* gradient) {
    if (gradient) tensors.emplace(key, gradient->gradient);
  });
  save_safetensors(path, tensors, {{"step", std::to_string(step.step)}});
}

void save_values(const RecordedStep& step, const std::string& path) {
  std::map<std::string, Tensor> tensors;
  each_value(step, [&](const std::string& key, const GraphRecord::Op*, const Tensor& value,
                       const GradRecord::Entry*) { tensors.emplace(key, value); });
  save_safetensors(path, tensors, {{"step", std::to_string(step.step)}});
}

void write_dot(const RecordedStep& step, const std::string& path) {
  const std::vector<std::string> keys = step.graph.op_keys(), leaf_keys = step.graph.leaf_keys();
  std::map<std::string, std::vector<size_t>> scopes;
  const auto& ops = step.graph.ops();
  for (size_t i = 0; i < ops.size(); ++i) scopes[*ops[i].node->scope].push_back(i);
  // Without newrank dot ranks each cluster by itself, and gives up on scopes that are entered
  // twice.
  std::string text = "digraph step {\n  rankdir=LR;\n  newrank=true;\n  node [shape=box];\n";
  for (const auto& [scope, members] : scopes) {
    text +=
        fmt::format("  subgraph {} {{\n    label={};\n", quoted("cluster_" + scope), quoted(scope));
    for (const size_t i : members)
      text += fmt::format("    n{} [label={}, tooltip={}];\n", i, quoted(ops[i].node->op),
                          quoted(keys[i]));
    text += "  }\n";
  }
  for (size_t l = 0; l < leaf_keys.size(); ++l)
    if (step.graph.leaves()[l].requires_grad)
      text += fmt::format("  l{} [label={}, shape=ellipse];\n", l, quoted(leaf_keys[l]));
  const auto edge = [&](const std::string& from, size_t to, const Tensor& value,
                        const GradRecord::Entry* gradient) {
    std::string label = fmt::format("rms {:.3g}", statistics(value).rms);
    if (gradient) label += fmt::format("\\ngrad {:.3g}", gradient->stats.l2);
    text += fmt::format("  {} -> n{} [label=\"{}\"];\n", from, to, label);
  };
  for (size_t i = 0; i < ops.size(); ++i) {
    for (size_t k = 0; k < ops[i].leaves.size(); ++k) {
      const size_t l = ops[i].leaves[k];
      if (l != GraphRecord::kNoLeaf) {
        const GraphRecord::Leaf& leaf = step.graph.leaves()[l];
        if (leaf.requires_grad)
          edge(fmt::format("l{}", l), i, leaf.value, step.gradient(leaf.meta.get()));
        continue;
      }
      const Node::Input& in = ops[i].node->inputs[k];
      const GraphRecord::Op* maker = in.node ? step.graph.find(in.node->id) : nullptr;
      if (!maker) continue;
      edge(fmt::format("n{}", maker - ops.data()), i,
           maker->outputs[static_cast<size_t>(in.output)], step.gradient(in.node->id, in.output));
    }
  }
  write_file_atomically(path, text + "}\n");
}

}  // namespace macgrad::experiments
