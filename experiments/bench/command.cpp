#include "macgrad/experiments/bench/command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "macgrad/core/error.h"
#include "macgrad/experiments/bench/groups.h"
#include "macgrad/experiments/common/arguments.h"
#include "macgrad/experiments/common/gpu_library.h"
#include "macgrad/experiments/common/machine.h"
#include "macgrad/experiments/common/output_files.h"

namespace macgrad::experiments {
namespace {

struct BenchSettings {
  CommonOptions common;
  std::vector<std::string> filter;
  std::string json;
  double time_factor = 1;
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
  place.seconds *= s.time_factor;
  BenchTable table(s.filter, place);
  bench_limits(table);
  bench_rows(table);
  bench_attention(table);
  bench_training(table);
  bench_recording(table);
  bench_decoding(table);
  bench_translation(table);
  require(!table.rows().empty() || !table.failures().empty(), "no row's name contains '{}'",
          fmt::join(s.filter, "' or '"));
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

int bench_command(int argc, const char* const* argv) {
  BenchSettings settings;
  return run_program(
      argc, argv, "bench",
      "Speed and memory, against limits of the same run. With --device cuda the rows of products "
      "and attention are measured exact, in tf32 and in bf16, or in one --math alone.",
      [&](Options& options) {
        add_device_options(options, settings.common);
        add_math_option(options, settings.common);
        options.words("--filter", settings.filter, "Only rows whose name contains one of these");
        options.number("--time-factor", settings.time_factor, above(0),
                       "Multiplies the time for which each row is measured");
        options.text("--json", settings.json, "Write the rows to this file as well", "FILE");
        options.check([&] { settings.math_given = options.given("--math"); });
      },
      [&] { return run_bench(settings); });
}

}  // namespace macgrad::experiments
