// bench: speed and memory, each figure as a ratio to a limit or a peer measured in the same run.
// compare_pytorch.py runs it beside PyTorch; RESULTS.md holds what came out.

#include <cstdlib>

#include "core/error.h"
#include "experiments/bench/groups.h"
#include "experiments/common/arguments.h"
#include "experiments/common/gpu_library.h"
#include "experiments/common/machine.h"

namespace macgrad::experiments {
namespace {

struct BenchSettings {
  CommonOptions common;
  std::string filter;
  std::string json;
  bool math_given = false;
};

Json to_json(const BenchRow& r) {
  Json json{{"name", r.name},       {"precision", r.precision}, {"ms", r.ms},
            {"ms_min", r.ms_min},   {"gflop", r.gflop},         {"gbyte", r.gbyte},
            {"against", r.against}, {"ratio", r.ratio},         {"note", r.note}};
  if (r.extra_bytes >= 0) json["extra_bytes"] = r.extra_bytes;
  for (const BatchLengths& batch : r.batches)
    json["batches"].push_back({{"source", batch.source}, {"target", batch.target}});
  return json;
}

int run_bench(BenchSettings& s) {
  apply_common_options(s.common);
  BenchPlace place;
  place.device = device_of(s.common);
  place.sizes = sizes_for(place.device.type);
  if (place.device.type != DeviceType::cpu) {
    place.seconds = 0.5;  // a GPU is far less noisy than the machines the CPU rows are made for
    place.set_math = [&](const std::string& mode) { use_math(s.common, mode); };
    place.library_product = gpu_library_product;
    place.precisions.clear();
    for (const Precision& p : precisions_of(place.device.type))
      if (!s.math_given || p.math == s.common.math) place.precisions.push_back(p);
  }
  BenchTable table(s.filter, place);
  bench_limits(table);
  bench_rows(table);
  bench_attention(table);
  bench_training(table);
  bench_recording(table);
  bench_decoding(table);
  bench_translation(table);
  require(!table.rows().empty() || !table.failures().empty(), "no row's name contains '{}'",
          s.filter);
  if (s.json.empty()) return table.failures().empty() ? 0 : 1;
  Json json = provenance();
  json["threads"] = s.common.threads;
  json["device"] = s.common.device;
  for (const BenchRow& r : table.rows()) json["rows"].push_back(to_json(r));
  for (const std::string& failure : table.failures()) json["failures"].push_back(failure);
  write_json(s.json, json);
  return table.failures().empty() ? 0 : 1;
}

}  // namespace
}  // namespace macgrad::experiments

int main(int argc, char** argv) {
  using namespace macgrad::experiments;
  // A composite in place of a kernel must not pass for the kernel's speed.
  setenv("MACGRAD_FUSED", "strict", /*overwrite=*/0);
  BenchSettings settings;
  return run_program(
      argc, argv, "bench",
      "Speed and memory, against limits of the same run. With --device cuda the rows of products "
      "and attention are measured exact, in tf32 and in bf16, or in one --math alone.",
      [&](CLI::App& app) {
        // Rows name their precisions.
        add_common_options(app, settings.common, {});
        app.parse_complete_callback(
            [&] { settings.math_given = app.get_option("--math")->count() > 0; });
        app.add_option("--filter", settings.filter,
                       "Only rows whose name contains this, or one of several between commas");
        app.add_option("--json", settings.json, "Write the rows to this file as well");
      },
      [&] { return run_bench(settings); });
}
