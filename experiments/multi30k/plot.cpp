#include "macgrad/experiments/multi30k/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "macgrad/core/error.h"
#include "macgrad/experiments/common/arguments.h"
#include "macgrad/experiments/common/attention_options.h"
#include "macgrad/experiments/common/confidence.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/experiments/multi30k/commands.h"
#include "macgrad/experiments/multi30k/settings.h"

namespace macgrad::experiments {
namespace fs = std::filesystem;
namespace {

// Settings below the object `json`, by their name; those of nested objects too.
void collect(const Json& json, std::map<std::string, std::string>& settings) {
  for (const auto& [name, value] : json.items()) {
    const SettingRole role = setting_role(name);
    if (role != SettingRole::model && role != SettingRole::end) continue;
    if (value.is_object()) {
      collect(value, settings);
    } else {
      settings[name] = value.is_string() ? value.get<std::string>() : value.dump();
    }
  }
}

void drop_idle(std::map<std::string, std::string>& settings) {
  if (const auto kind = settings.find("attention"); kind != settings.end()) {
    nn::AttentionSettings attention;
    attention.kind = nn::attention_kind(kind->second);
    if (const auto map = settings.find("map"); map != settings.end())
      attention.map = nn::feature_map(map->second);
    for (const std::string& name : attention_settings_names())
      if (!attention.reads(name)) settings.erase(name);
  }
  if (settings["ppsbn"] == "false") {
    settings.erase("presbn");
    if (const auto scale = settings.find("logit_scale");
        scale != settings.end() && scale->second == "0.0")
      scale->second = "1.0";  // automatic
  }
}

PlottedRun read_run(const std::string& folder) {
  PlottedRun run;
  run.folder = folder;
  run.metrics = read_csv((fs::path(folder) / "metrics.csv").string());
  require(std::count(run.metrics.columns.begin(), run.metrics.columns.end(), "epoch") == 1,
          "{}: line 1: no column \"epoch\"; it was not written by multi30k", run.metrics.path);
  // Results that were published without the rest of their run have the settings too.
  std::string path = (fs::path(folder) / "settings.json").string();
  if (const fs::path results = fs::path(folder) / "results.json";
      !fs::exists(path) && fs::exists(results))
    path = results.string();
  const Json json = read_json(path);
  require(json.is_object() && json.contains("settings") && json["settings"].is_object(),
          "{}: no object \"settings\"; it was not written by multi30k", path);
  collect(json["settings"], run.settings);
  drop_idle(run.settings);
  try {
    if (!json.contains("data")) return run;
    const Json& data = json["data"];
    run.title = data.value("name", "");
    if (const auto crc = data.find("crc32"); crc != data.end()) {
      // In both directions the same text.
      const auto sides =
          std::minmax({crc->value("train_source", ""), crc->value("train_target", "")});
      run.settings["training text"] = fmt::format("{}-{}", sides.first, sides.second);
    }
  } catch (const nlohmann::json::exception& error) {
    throw Error("{}: \"data\": {}", path, error.what());
  }
  return run;
}

bool has_metrics(const fs::path& folder) {
  std::error_code ignored;
  return fs::is_regular_file(folder / "metrics.csv", ignored);
}

// Folders with a run in `folder`, at most `depth` levels down; none below another.
void find_runs(const fs::path& folder, int depth, std::vector<std::string>& found) {
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (!entry.is_directory()) continue;
    if (has_metrics(entry.path())) {
      found.push_back(entry.path().string());
    } else if (depth > 1) {
      find_runs(entry.path(), depth - 1, found);
    }
  }
}

std::string shown(const std::string& setting, const std::string& value) {
  std::string name = setting;
  std::replace(name.begin(), name.end(), '_', ' ');
  if (value == "true") return name;
  if (value == "false") return "no " + name;
  return name + " " + value;
}

// Values that an axis from zero would press together: of perplexity, whose steps count by ratio.
bool spans_decades(const CurvePlot& plot) {
  double low = INFINITY;
  double high = 0;
  for (const Curve& curve : plot.curves) {
    for (const double y : curve.y) {
      if (!std::isfinite(y)) continue;
      low = std::min(low, y);
      high = std::max(high, y);
    }
  }
  return low > 0 && high > 10 * low;
}

}  // namespace

std::vector<PlottedRun> read_runs(const std::string& folder) {
  std::error_code error;
  require(fs::is_directory(folder, error), "{}: no such folder; give folders that multi30k left",
          folder);
  if (has_metrics(folder)) return {read_run(folder)};
  std::vector<std::string> below;
  find_runs(folder, 2, below);
  require(!below.empty(),
          "{}: no metrics.csv in it or up to two folders down; give folders that multi30k left",
          folder);
  std::sort(below.begin(), below.end());
  std::vector<PlottedRun> runs;
  for (const std::string& path : below) runs.push_back(read_run(path));
  return runs;
}

std::vector<Configuration> group_runs(const std::vector<PlottedRun>& runs) {
  std::vector<Configuration> groups;
  for (const PlottedRun& run : runs) {
    const auto same = std::find_if(groups.begin(), groups.end(), [&](const Configuration& g) {
      return g.runs[0]->settings == run.settings;
    });
    if (same != groups.end()) {
      same->runs.push_back(&run);
    } else {
      groups.push_back({"", {&run}});
    }
  }
  std::map<std::string, std::set<std::string>> values;
  for (const Configuration& group : groups)
    for (const auto& [name, value] : group.runs[0]->settings) values[name].insert(value);
  std::set<std::string> names;
  for (Configuration& group : groups) {
    const auto& settings = group.runs[0]->settings;
    const auto value = [&](const char* name) {
      const auto found = settings.find(name);
      return found != settings.end() ? found->second : "";
    };
    group.name = value("attention").empty() ? "attention unknown" : value("attention");
    if (value("ppsbn") == "true") group.name += " + ppSBN";
    for (const auto& [name, own] : settings)
      if (name != "attention" && name != "ppsbn" && values[name].size() > 1)
        group.name += ", " + shown(name, own);
    // Where settings of other versions are missing, the rest may look alike.
    if (!names.insert(group.name).second) group.name += ", " + group.runs[0]->folder;
    if (group.runs.size() > 1) group.name += fmt::format(" ({} runs)", group.runs.size());
  }
  return groups;
}

Curve mean_curve(const Configuration& configuration, const std::string& column, Band band) {
  std::map<double, std::vector<double>> by_epoch;
  for (const PlottedRun* run : configuration.runs) {
    const std::vector<double> epochs = run->metrics.numbers("epoch");
    const std::vector<double> values = run->metrics.numbers(column);
    for (size_t i = 0; i < std::min(epochs.size(), values.size()); ++i)
      if (std::isfinite(epochs[i]) && std::isfinite(values[i]))
        by_epoch[epochs[i]].push_back(values[i]);
  }
  Curve curve;
  curve.name = configuration.name;
  const size_t runs = configuration.runs.size();
  for (const auto& [epoch, values] : by_epoch) {
    if (values.size() != runs) continue;
    const double mean = mean_of(values);
    curve.x.push_back(epoch);
    curve.y.push_back(mean);
    if (runs < 2) continue;
    const double deviation = sample_deviation(values);
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    curve.low.push_back(band == Band::range ? *low : mean - deviation);
    curve.high.push_back(band == Band::range ? *high : mean + deviation);
  }
  return curve;
}

Panels training_panels(const std::vector<Configuration>& configurations, Band band) {
  Panels panels;
  const auto add = [&](const char* title, const char* label, bool by_ratio,
                       std::initializer_list<std::pair<const char*, bool>> columns) {
    CurvePlot plot;
    plot.title = title;
    plot.x_label = "epoch";
    plot.y_label = label;
    for (size_t i = 0; i < configurations.size(); ++i) {
      for (const auto& [column, dashed] : columns) {
        Curve curve = mean_curve(configurations[i], column, band);
        if (curve.x.empty()) continue;
        curve.style = static_cast<int>(i) + 1;
        curve.dashed = dashed;
        plot.curves.push_back(std::move(curve));
      }
    }
    plot.log_y = by_ratio && spans_decades(plot);
    if (!plot.curves.empty()) panels.plots.push_back(std::move(plot));
  };
  add("Loss: validation, training dashed", "loss a token (nats)", false,
      {{"valid_loss", false}, {"train_loss", true}});
  add("Validation perplexity", "perplexity a token", true, {{"valid_perplexity", false}});
  add("Validation BLEU", "BLEU", false, {{"valid_bleu", false}});
  require(!panels.plots.empty(),
          "no run has an epoch with train_loss, valid_loss, valid_perplexity or valid_bleu in its "
          "metrics.csv; plot runs that ended at least one epoch");

  std::set<std::string> titles;
  bool several = false;
  for (const Configuration& c : configurations) {
    several = several || c.runs.size() > 1;
    for (const PlottedRun* run : c.runs) titles.insert(run->title);
  }
  panels.title = titles.size() == 1 ? *titles.begin() : "";
  if (several)
    panels.title += fmt::format("{}mean over runs, band: {}", panels.title.empty() ? "" : "; ",
                                band == Band::range ? "lowest to highest" : "standard deviation");
  return panels;
}

DrawnRuns draw_runs(const std::vector<std::string>& folders, Band band, const std::string& base) {
  std::vector<PlottedRun> runs;
  std::set<std::string> seen;  // a run named twice is one run
  for (const std::string& folder : folders)
    for (PlottedRun& run : read_runs(folder))
      if (seen.insert(fs::canonical(run.folder).string()).second) runs.push_back(std::move(run));
  const std::vector<Configuration> configurations = group_runs(runs);
  DrawnRuns result;
  for (const Configuration& c : configurations) {
    std::vector<std::string>& its =
        result.configurations.emplace_back(c.name, std::vector<std::string>()).second;
    for (const PlottedRun* run : c.runs) its.push_back(run->folder);
  }
  result.drawn = write_plot(training_panels(configurations, band), base);
  return result;
}

int plot_command(int argc, const char* const* argv) {
  std::vector<std::string> folders;
  std::string out = "curves";
  std::string band = "range";
  return run_program(
      argc, argv, "multi30k plot", "Draws loss, perplexity and BLEU over the epochs of runs.",
      [&](Options& options) {
        options.paths("runs", folders, "Folders of runs, or folders that hold some", "RUN");
        options.require("runs");
        options.text("--out", out, "Picture, without .svg or .png: both are made", "FILE");
        options.choice(
            "--band", band, {"range", "deviation"},
            "Around the mean of several seeds: lowest to highest, or ± standard deviation");
      },
      [&] {
        for (const std::string_view suffix : {".svg", ".png", ".gp"})
          if (out.ends_with(suffix)) out.resize(out.size() - suffix.size());
        const DrawnRuns runs =
            draw_runs(folders, band == "range" ? Band::range : Band::deviation, out);
        for (const auto& [name, its] : runs.configurations)
          say("{}: {}\n", name, fmt::join(its, " "));
        if (!runs.drawn) return 1;
        say("{0}.svg, {0}.png and {0}.gp are written\n", out);
        return 0;
      });
}

}  // namespace macgrad::experiments
