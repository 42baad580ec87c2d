// `multi30k plot`: CSV tables, runs grouped into configurations, their mean curves and bands, the
// panels as a script for gnuplot, and the command with the pictures it leaves.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "macgrad/core/error.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/multi30k/commands.h"
#include "macgrad/experiments/multi30k/plot.h"
#include "macgrad/tests/errors.h"
#include "macgrad/tests/temporary_folder.h"

namespace macgrad::experiments {
namespace {
namespace fs = std::filesystem;

using Folder = testing::TemporaryFolder;
using testing::contains;
using testing::error_of;

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// A run's folder; `change` edits the settings.
std::string write_run(const Folder& folder, const std::string& name, const std::string& metrics,
                      const Json& change = Json::object()) {
  Json settings{
      {"attention", "softmax"}, {"ppsbn", false}, {"kernel", "exp"},
      {"features", 128},        {"lr", 0.001},    {"common", {{"seed", 1}, {"out", name}}}};
  settings.update(change, true);
  folder.write(name + "/metrics.csv", metrics);
  folder.write(name + "/settings.json",
               Json{{"settings", settings}, {"data", {{"name", "Multi30K de-en (tok)"}}}}.dump());
  return folder / name;
}

std::vector<PlottedRun> read_all(const std::vector<std::string>& folders) {
  std::vector<PlottedRun> runs;
  for (const std::string& path : folders)
    for (PlottedRun& run : read_runs(path)) runs.push_back(std::move(run));
  return runs;
}

const char kMetrics[] =
    "epoch,train_loss,valid_loss,valid_perplexity,valid_bleu\n1,4,3,20,5\n2,3,2,7.4,11\n";

TEST_CASE("CSV tables: what CsvWriter writes reads back, damage is named with its line") {
  const Folder folder;
  CsvWriter writer(folder / "t.csv", {"a", "b,\"c\"", "d"});
  writer.row({std::int64_t{3}, std::string("x, \"y\""), 0.1});
  writer.row({std::monostate{}, std::string("1e-3"), NAN});
  const CsvTable table = read_csv(folder / "t.csv");
  CHECK(table.columns == std::vector<std::string>{"a", "b,\"c\"", "d"});
  CHECK(table.rows[0] == std::vector<std::string>{"3", "x, \"y\"", "0.1"});
  CHECK(table.numbers("a")[0] == 3);
  CHECK(std::isnan(table.numbers("a")[1]));
  CHECK(table.numbers("d")[0] == 0.1);
  CHECK(std::isnan(table.numbers("d")[1]));
  CHECK(table.numbers("absent").empty());
  CHECK(error_of([&] { table.numbers("b,\"c\""); }) ==
        (folder / "t.csv") + ": line 2: b,\"c\" is \"x, \"y\"\", not a number");

  const auto error = [&](const std::string& text) {
    const std::string path = folder.write("bad.csv", text);
    const std::string message = error_of([&] { read_csv(path); });
    return message.substr(std::min(message.size(), path.size()));
  };
  CHECK(contains(error(""), ": line 1: the file is empty"));
  CHECK(contains(error("a,b,a\n"), ": line 1: column \"a\" stands there twice"));
  CHECK(contains(error("a,b\n1,2\n3\n"), ": line 3: 1 cells under 2 columns"));
  CHECK(contains(error("a,b\n1,2,3\n"), ": line 2: 3 cells under 2 columns"));
  CHECK(contains(error("a,b\n1,\"2\n"), ": line 2: a quote is not closed"));
  CHECK(contains(error("a,b\n1,\"2\"3\n"), ": line 2: text after a closing quote"));
  CHECK(error("a,b\n1,2").empty());
}

TEST_CASE("plot: runs are found in folders and grouped by what differs") {
  const Folder folder;
  const std::string soft = write_run(folder, "a/soft", kMetrics);
  write_run(folder, "a/soft-2", kMetrics, {{"common", {{"seed", 2}}}});
  // What softmax does not read makes no other configuration.
  write_run(folder, "a/soft-3", kMetrics, {{"features", 64}, {"kernel", "inv"}});
  folder.write("a/notes/readme", "no run");
  // What is done with the trained model makes none either; what its metrics measure does.
  write_run(folder, "deep/b/seed-1", kMetrics, {{"beam", 5}, {"test", {"x"}}, {"preset", "quick"}});
  write_run(folder, "deep/b/seed-2", kMetrics, {{"valid_bleu_sentences", 7}});
  CHECK(read_runs(folder / "deep").size() == 2);
  const std::string sbn = write_run(folder, "sbn", kMetrics, {{"ppsbn", true}});
  const std::string few = write_run(folder, "few", kMetrics,
                                    {{"attention", "rmfa"}, {"ppsbn", true}, {"features", 64}});
  const std::string more =
      write_run(folder, "more", kMetrics,
                {{"attention", "rmfa"}, {"ppsbn", true}, {"train_logit_scale", true}});

  CHECK(read_runs(folder / "a").size() == 3);
  const std::vector<PlottedRun> runs = read_all({folder / "a", sbn, few, more});
  const std::vector<Configuration> groups = group_runs(runs);
  REQUIRE(groups.size() == 4);
  CHECK(groups[0].name == "softmax (3 runs)");
  CHECK(groups[0].runs[0]->folder == soft);
  CHECK(groups[1].name == "softmax + ppSBN");
  CHECK(groups[2].name == "rmfa + ppSBN, features 64");
  CHECK(groups[3].name == "rmfa + ppSBN, features 128");
  CHECK(groups[0].runs[0]->title == "Multi30K de-en (tok)");

  CHECK(group_runs(read_all({soft, folder / "deep"})).size() == 2);

  // Alone, a configuration is named by its attention.
  const std::vector<PlottedRun> one = read_all({few});
  CHECK(group_runs(one)[0].name == "rmfa + ppSBN");
  // A setting that one run's version did not have does not make two names the same.
  const std::vector<PlottedRun> versions =
      read_all({soft, write_run(folder, "new", kMetrics, {{"averaged", 10}})});
  CHECK(group_runs(versions)[1].name == "softmax, " + (folder / "new"));
  // On and off.
  const std::vector<PlottedRun> flags =
      read_all({write_run(folder, "on", kMetrics, {{"shared_embeddings", true}, {"lr", 0.005}}),
                write_run(folder, "off", kMetrics, {{"shared_embeddings", false}})});
  CHECK(group_runs(flags)[0].name == "softmax, lr 0.005, shared embeddings");
  CHECK(group_runs(flags)[1].name == "softmax, lr 0.001, no shared embeddings");

  // Results that were published without the rest of their run; other training text is no band.
  const std::string published = write_run(folder, "published", kMetrics);
  const auto with_text = [&](const char* crc) {
    Json json = read_json(published + (crc[0] == 'a' ? "/settings.json" : "/results.json"));
    json["data"]["crc32"] = {{"train_source", crc}, {"train_target", "b"}};
    write_json(published + "/results.json", json);
  };
  with_text("a");
  std::filesystem::remove(published + "/settings.json");
  const std::vector<PlottedRun> first = read_all({published});
  CHECK(first[0].title == "Multi30K de-en (tok)");
  with_text("c");
  std::vector<PlottedRun> both = read_all({published});
  both.push_back(first[0]);
  REQUIRE(group_runs(both).size() == 2);
  CHECK(group_runs(both)[0].name == "softmax, training text b-c");
}

TEST_CASE("plot: mean and band over the epochs that every run measured") {
  const Folder folder;
  write_run(folder, "r/1", "epoch,valid_bleu\n1,10\n2,20\n3,30\n");
  write_run(folder, "r/2", "valid_bleu,epoch\n14,1\n,2\n36,3\n40,4\n");
  write_run(folder, "r/3", "epoch,valid_bleu,train_loss\n1,18,1\n2,22,1\n3,nan,1\n");
  const std::vector<PlottedRun> runs = read_runs(folder / "r");
  const std::vector<Configuration> groups = group_runs(runs);
  REQUIRE(groups.size() == 1);
  Curve curve = mean_curve(groups[0], "valid_bleu", Band::range);
  CHECK(curve.x == std::vector<double>{1});
  CHECK(curve.y[0] == doctest::Approx(14));
  CHECK(curve.low == std::vector<double>{10});
  CHECK(curve.high == std::vector<double>{18});
  curve = mean_curve(groups[0], "valid_bleu", Band::deviation);
  CHECK(curve.low[0] == doctest::Approx(10));  // standard deviation 4
  CHECK(curve.high[0] == doctest::Approx(18));
  CHECK(mean_curve(groups[0], "train_loss", Band::range).x.empty());

  const Configuration one{"one", {&runs[1]}};
  curve = mean_curve(one, "valid_bleu", Band::range);
  CHECK(curve.x == std::vector<double>{1, 3, 4});
  CHECK(curve.low.empty());

  // Only the panel with values remains.
  const Panels panels = training_panels(groups, Band::range);
  REQUIRE(panels.plots.size() == 1);
  CHECK(panels.plots[0].y_label == "BLEU");
  CHECK(panels.title == "Multi30K de-en (tok); mean over runs, band: lowest to highest");
}

TEST_CASE("plot: perplexities over decades get a logarithmic axis") {
  const Folder folder;
  const std::string path = write_run(
      folder, "r", "epoch,valid_loss,valid_perplexity,valid_bleu\n1,6,400,0.2\n2,2,7.4,30\n");
  const std::vector<PlottedRun> runs = read_runs(path);
  const Panels panels = training_panels(group_runs(runs), Band::range);
  REQUIRE(panels.plots.size() == 3);
  CHECK_FALSE(panels.plots[0].log_y);
  CHECK(panels.plots[1].log_y);
  CHECK_FALSE(panels.plots[2].log_y);  // a BLEU of 0.2 is as good as none
}

TEST_CASE("plot: a panel's script carries data, bands and one legend") {
  Panels panels{"it's a title", {}};
  CurvePlot plot{"loss", "epoch", "nats", false, true, {}};
  plot.curves.push_back(
      {.name = "a_b", .x = {1, 2}, .y = {3, NAN}, .low = {2, 2}, .high = {4, 5}, .style = 2});
  plot.curves.push_back({.name = "a_b", .x = {1}, .y = {3}, .style = 2, .dashed = true});
  plot.curves.push_back({.name = "c", .x = {1}, .y = {7}, .style = 3});
  panels.plots = {plot, plot};
  const std::string text = gnuplot_script(panels);
  CHECK(contains(text, "1 3 2 4\n2 NaN 2 5\n"));
  CHECK(contains(text, "$p1_curve0 using 1:3:4 with filledcurves linecolor 2"));
  CHECK(contains(text, "$p0_curve1 using 1:2 with lines linecolor 2 dashtype 2"));
  CHECK(contains(text, "heading = 'it''s a title'"));
  CHECK(contains(text, "set ytics (1, 2, 5)"));
  CHECK(contains(text, "set xtics 1\n"));
  // Two names, each once in the legend.
  CHECK(contains(text, "legend0 = 'a_b'\nlegend1 = 'c'\n"));
  CHECK_FALSE(contains(text, "legend2"));
  CHECK(text.find("title legend0") == text.rfind("title legend0"));

  panels.plots[1].curves[0].high.pop_back();
  CHECK(contains(error_of([&] { gnuplot_script(panels); }), "a band of 2 low and 1 high values"));
  CHECK_THROWS_AS(gnuplot_script(Panels{}), Error);
}

TEST_CASE("plot: committed results can be read and drawn") {
  const fs::path results = fs::path(MACGRAD_SOURCE) / "experiments/multi30k/results";
  size_t runs = 0;
  for (const auto& entry : fs::directory_iterator(results)) {
    CAPTURE(entry.path().string());
    const std::vector<PlottedRun> read = read_runs(entry.path().string());
    runs += read.size();
    CHECK(contains(gnuplot_script(training_panels(group_runs(read), Band::range)), "plot"));
  }
  CHECK(runs == 39);
}

TEST_CASE("plot: an automatic logit scale without ppSBN is a scale of 1") {
  const Folder folder;
  const std::string old_run =
      write_run(folder, "runs/a", kMetrics, {{"logit_scale", 1.0}, {"common", {{"seed", 2}}}});
  const std::string run = write_run(folder, "runs/b", kMetrics, {{"logit_scale", 0.0}});
  const std::vector<PlottedRun> same = read_all({old_run, run});
  CHECK(group_runs(same).size() == 1);
  const std::string with_sbn =
      write_run(folder, "runs/c", kMetrics, {{"logit_scale", 0.0}, {"ppsbn", true}});
  const std::string sbn_at_one =
      write_run(folder, "runs/d", kMetrics, {{"logit_scale", 1.0}, {"ppsbn", true}});
  const std::vector<PlottedRun> different = read_all({with_sbn, sbn_at_one});
  CHECK(group_runs(different).size() == 2);
}

TEST_CASE("plot: the command draws pictures and names what is wrong") {
  const Folder folder;
  const auto run = [&](std::vector<const char*> arguments) {
    arguments.insert(arguments.begin(), "plot");
    return plot_command(static_cast<int>(arguments.size()), arguments.data());
  };
  const std::string a = write_run(folder, "runs/a", kMetrics);
  const std::string b = write_run(folder, "runs/b", kMetrics, {{"common", {{"seed", 2}}}});
  const std::string all = folder / "runs";
  const std::string out = folder / "figure.svg";
  if (std::system("gnuplot --version > /dev/null 2>&1") == 0) {
    // A run that is named twice counts once.
    CHECK(run({all.c_str(), a.c_str(), "--out", out.c_str()}) == 0);
    CHECK(contains(contents(folder / "figure.gp"), "legend0 = 'softmax (2 runs)'"));
    const std::string svg = contents(out);
    CHECK(contains(svg, "Validation BLEU"));
    CHECK(contains(svg, "softmax (2 runs)"));
    CHECK(contents(folder / "figure.png").substr(1, 3) == "PNG");
  } else {
    MESSAGE("pictures skipped: gnuplot is not installed");
    CHECK(run({all.c_str(), "--out", out.c_str()}) == 1);
    CHECK(fs::exists(folder / "figure.gp"));
  }

  CHECK(run({}) == 2);
  CHECK(run({(folder / "absent").c_str()}) == 1);
  CHECK(contains(error_of([&] { read_runs(folder / "absent"); }), "absent: no such folder"));
  folder.write("none/x", "");
  CHECK(contains(error_of([&] { read_runs(folder / "none"); }), "none: no metrics.csv in it"));
  folder.write("runs/a/metrics.csv", "epoch,valid_loss\n1,2\n2,2,2\n");
  CHECK(contains(error_of([&] { read_runs(a); }), "metrics.csv: line 3: 3 cells under 2 columns"));
  folder.write("runs/a/metrics.csv", "valid_loss\n1\n");
  CHECK(contains(error_of([&] { read_runs(a); }), "metrics.csv: line 1: no column \"epoch\""));
  folder.write("runs/b/settings.json", "[]");
  CHECK(contains(error_of([&] { read_runs(b); }), "settings.json: no object \"settings\""));
  fs::remove(folder / "runs/b/settings.json");
  CHECK(contains(error_of([&] { read_runs(b); }), "settings.json"));
  const std::string early = write_run(folder, "early", "epoch,valid_loss\n1,\n");
  const std::vector<PlottedRun> runs = read_runs(early);
  CHECK(contains(error_of([&] { training_panels(group_runs(runs), Band::range); }),
                 "plot runs that ended at least one epoch"));
}

}  // namespace
}  // namespace macgrad::experiments
