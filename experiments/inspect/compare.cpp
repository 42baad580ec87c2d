// Records are matched by key: scope, op and how many of it came before, which do not change with
// seed, device or precision.
#include "macgrad/experiments/inspect/compare.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "macgrad/core/safetensors.h"
#include "macgrad/experiments/common/arguments.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/experiments/inspect/step_record.h"

namespace macgrad::experiments {
namespace {

struct Files {
  std::vector<std::string> order;  // keys of outputs in order of recording, then of leaves
  std::set<std::string> leaves;
  std::map<std::string, Tensor> values, gradients;
};

Files read_record(const std::string& folder) {
  namespace fs = std::filesystem;
  const auto file = [&](const char* name) { return (fs::path(folder) / name).string(); };
  require(fs::is_directory(folder), "{}: not a folder; give two folders that inspect wrote",
          folder);
  Files files;
  const std::string graph = file("graph.json");
  const Json json = read_json(graph);
  try {
    require(!json.at("steps").empty(), "it holds no step");
    const Json& step = json.at("steps").back();
    for (const Json& op : step.at("ops"))
      for (size_t o = 0; o < op.at("outputs").size(); ++o)
        files.order.push_back(output_key(op.at("key").get<std::string>(), static_cast<int>(o)));
    for (const Json& leaf : step.at("leaves")) {
      files.order.push_back(leaf.at("key").get<std::string>());
      files.leaves.insert(files.order.back());
    }
  } catch (const std::exception& error) {
    throw Error("{}: not a graph.json of inspect: {}", graph, error.what());
  }
  files.values = load_safetensors(file("values.safetensors")).tensors;
  files.gradients = load_safetensors(file("gradients.safetensors")).tensors;
  return files;
}

Comparison compare(const std::string& key, bool gradient, const Tensor& a, const Tensor& b) {
  Comparison c{key, gradient, 0, 0, a.shape() == b.shape()};
  if (!c.same_shape) {
    c.difference = std::numeric_limits<double>::infinity();
    return c;
  }
  const auto x = a.to_vector<double>(), y = b.to_vector<double>();
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isfinite(x[i])) c.size = std::max(c.size, std::abs(x[i]));
    const bool equal = x[i] == y[i] || (std::isnan(x[i]) && std::isnan(y[i]));
    if (equal) continue;
    const double d = std::abs(x[i] - y[i]);
    c.difference =
        std::isfinite(d) ? std::max(c.difference, d) : std::numeric_limits<double>::infinity();
  }
  return c;
}

std::string line(const Comparison& c) {
  if (!c.same_shape) return c.key + ": the shapes differ";
  return fmt::format("{}: |a - b| up to {:.3g}, {:.3g} of the largest |a|", c.key, c.difference,
                     c.relative());
}

void report(const char* what, const std::vector<Comparison>& list, double tolerance) {
  const auto above = std::count_if(list.begin(), list.end(),
                                   [&](const Comparison& c) { return c.relative() > tolerance; });
  if (above == 0) {
    say("{}: {} compared, none differs by more than {} of its size\n", what, list.size(),
        tolerance);
    return;
  }
  const auto worst = std::max_element(
      list.begin(), list.end(),
      [](const Comparison& x, const Comparison& y) { return x.relative() < y.relative(); });
  say("{}: {} of {} differ by more than {} of their size\n", what, above, list.size(), tolerance);
  say("  first  {}\n", line(*first_above(list, tolerance)));
  say("  worst  {}\n", line(*worst));
}

}  // namespace

double Comparison::relative() const {
  if (difference == 0) return 0;
  return size > 0 ? difference / size : std::numeric_limits<double>::infinity();
}

const Comparison* first_above(const std::vector<Comparison>& list, double tolerance) {
  const auto it = std::find_if(list.begin(), list.end(),
                               [&](const Comparison& c) { return c.relative() > tolerance; });
  return it == list.end() ? nullptr : &*it;
}

ComparisonResult compare_records(const std::string& a, const std::string& b, double floor) {
  const Files x = read_record(a), y = read_record(b);
  ComparisonResult result;
  const std::set<std::string> in_a(x.order.begin(), x.order.end()),
      in_b(y.order.begin(), y.order.end());
  for (const std::string& key : y.order)
    if (!in_a.contains(key)) result.only_b.push_back(key);
  const auto both = [&](const std::map<std::string, Tensor>& p,
                        const std::map<std::string, Tensor>& q, const std::string& key,
                        bool gradient, std::vector<Comparison>& list) {
    const auto i = p.find(key), j = q.find(key);
    if (i != p.end() && j != q.end())
      list.push_back(compare(key, gradient, i->second, j->second));
    else if (i != p.end() || j != q.end())
      (i != p.end() ? result.only_a : result.only_b)
          .push_back(gradient ? "the gradient of " + key : key);
  };
  for (const std::string& key : x.order) {
    if (!in_b.contains(key)) {
      result.only_a.push_back(key);
      continue;
    }
    both(x.values, y.values, key, false, result.values);
  }
  for (auto key = x.order.rbegin(); key != x.order.rend(); ++key)
    if (in_b.contains(*key)) both(x.gradients, y.gradients, *key, true, result.gradients);
  // Leaves stand last in the order of recording, and so first here; they are complete last.
  std::stable_partition(result.gradients.begin(), result.gradients.end(),
                        [&](const Comparison& c) { return !x.leaves.contains(c.key); });
  for (auto* list : {&result.values, &result.gradients}) {
    double largest = 0;
    for (const Comparison& c : *list) largest = std::max(largest, c.size);
    for (Comparison& c : *list) c.size = std::max(c.size, floor * largest);
  }
  return result;
}

int compare_command(int argc, const char* const* argv) {
  std::string a, b, csv;
  double tolerance = 1e-5, floor = 1e-4;
  return run_program(
      argc, argv, "inspect compare",
      "The first value and the first gradient that differ between two records.",
      [&](Options& options) {
        options.text("A", a, "Folder that inspect wrote", "FOLDER");
        options.require("A");
        options.text("B", b, "Another one of the same model", "FOLDER");
        options.require("B");
        options.number("--tolerance", tolerance, at_least(0),
                       "Differences up to this share of the largest |a|");
        options.number("--floor", floor, at_least(0),
                       "Smaller sizes count as this share of the largest value or gradient");
        options.text("--csv", csv, "All comparisons as a table", "FILE");
      },
      [&] {
        if (!csv.empty()) check_writable(csv);
        const ComparisonResult r = compare_records(a, b, floor);
        require(!r.values.empty(), "{} and {} have no value in common: records of other models", a,
                b);
        const auto missing = [](const std::vector<std::string>& keys, const std::string& where) {
          if (!keys.empty())
            say("only in {}: {} values, the first {}\n", where, keys.size(), keys.front());
        };
        missing(r.only_a, a);
        missing(r.only_b, b);
        report("values", r.values, tolerance);
        report("gradients", r.gradients, tolerance);
        if (!csv.empty()) {
          std::vector<std::vector<CsvValue>> rows;
          for (const auto* list : {&r.values, &r.gradients})
            for (const Comparison& c : *list)
              rows.push_back({c.key, std::string(c.gradient ? "gradient" : "value"), c.difference,
                              c.size, c.relative()});
          CsvWriter(csv, {"name", "what", "difference", "size", "relative"}, rows);
        }
        const bool same = r.only_a.empty() && r.only_b.empty() &&
                          !first_above(r.values, tolerance) && !first_above(r.gradients, tolerance);
        return same ? 0 : kFound;
      });
}

}  // namespace macgrad::experiments
