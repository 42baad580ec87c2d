// bench: speed and memory, each figure as a ratio to a limit or a peer measured in the same run.
// compare_pytorch.py runs it beside PyTorch; RESULTS.md holds what came out.

#include <cstdlib>

#include "core/error.h"
#include "experiments/bench/groups.h"
#include "experiments/common/arguments.h"
#include "experiments/common/machine.h"

namespace macgrad::experiments {
namespace {

struct BenchSettings {
  CommonOptions common;
  std::string filter;
  std::string json;
};

Json to_json(const BenchRow& r) {
  return {{"name", r.name},   {"ms", r.ms},           {"ms_min", r.ms_min}, {"gflop", r.gflop},
          {"gbyte", r.gbyte}, {"against", r.against}, {"ratio", r.ratio},   {"note", r.note}};
}

int run_bench(BenchSettings& s) {
  apply_common_options(s.common);
  require(s.common.device == "cpu",
          "--device {}: the rows of this program measure the CPU backend; leave --device out",
          s.common.device);
  BenchTable table(s.filter);
  bench_limits(table);
  bench_rows(table);
  bench_attention(table);
  bench_training(table);
  require(!table.rows().empty(), "no row's name contains '{}'", s.filter);
  if (s.json.empty()) return 0;
  Json json = provenance();
  json["threads"] = s.common.threads;
  for (const BenchRow& r : table.rows()) json["rows"].push_back(to_json(r));
  write_json(s.json, json);
  return 0;
}

}  // namespace
}  // namespace macgrad::experiments

int main(int argc, char** argv) {
  using namespace macgrad::experiments;
  // A composite in place of a kernel must not pass for the kernel's speed.
  setenv("MACGRAD_FUSED", "strict", /*overwrite=*/0);
  BenchSettings settings;
  return run_program(
      argc, argv, "bench", "Speed and memory of the CPU backend, against limits of the same run.",
      [&](CLI::App& app) {
        add_common_options(app, settings.common);
        app.add_option("--filter", settings.filter, "Only rows whose name contains this");
        app.add_option("--json", settings.json, "Write the rows to this file as well");
      },
      [&] { return run_bench(settings); });
}
