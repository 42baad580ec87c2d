// `multi30k study`: the table asks one thing a row, and the command runs, goes on, and compares.
#include <doctest/doctest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <thread>

#include "macgrad/experiments/common/csv.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/multi30k/commands.h"
#include "macgrad/experiments/multi30k/presets.h"
#include "macgrad/experiments/multi30k/study.h"
#include "macgrad/tests/multi30k_settings.h"
#include "macgrad/tests/temporary_folder.h"

namespace macgrad::experiments {
namespace {
namespace fs = std::filesystem;

using Folder = testing::TemporaryFolder;

// Names of the settings that differ.
std::vector<std::string> differences(const Multi30kSettings& a, const Multi30kSettings& b) {
  const Json x = to_json(a), y = to_json(b);
  std::vector<std::string> names;
  for (const auto& [name, value] : x.items())
    if (value != y.at(name)) names.push_back(name);
  return names;
}

std::string contents(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST_CASE("multi30k study: one factor at a time around RMFA") {
  const Multi30kSettings softmax = study_settings();
  std::map<std::string, Multi30kSettings> rows;
  for (const StudyRun& run : study_runs()) {
    Multi30kSettings s = study_settings();
    run.change(s);
    CHECK_NOTHROW(check_settings(s));
    CHECK_MESSAGE(rows.emplace(run.name, s).second, run.name);
    CHECK(s.max_updates == softmax.max_updates);
  }
  CHECK(differences(rows.at("softmax"), softmax).empty());
  CHECK(differences(rows.at("softmax-ppsbn"), softmax) == std::vector<std::string>{"ppsbn"});
  using Names = std::vector<std::string>;
  const std::map<std::string, Names> factor{
      {"exact", {"attention"}},   {"rmfa-trained-scale", {"train_logit_scale"}},
      {"rmfa-inv", {"kernel"}},   {"rmfa-log", {"kernel"}},
      {"rmfa-trigh", {"kernel"}}, {"rmfa-sqrt", {"kernel"}},
      {"rmfa-64", {"features"}},  {"rmfa-256", {"features"}},
      {"rmfa-never", {"redraw"}}, {"rmfa-iid", {"draws"}}};
  for (const auto& [name, names] : factor)
    CHECK_MESSAGE(differences(rows.at(name), rows.at("rmfa")) == names, name);
  // Rows that start the logit scale elsewhere, and change nothing else with it.
  const std::map<std::string, std::string> start{
      {"softmax-ppsbn-scale-8", "softmax-ppsbn-trained-scale"},
      {"softmax-ppsbn-scale-16", "softmax-ppsbn-trained-scale"},
      {"softmax-ppsbn-scale-32", "softmax-ppsbn-trained-scale"},
      {"rmfa-scale-8", "rmfa-trained-scale"}};
  for (const auto& [name, from_one] : start)
    CHECK_MESSAGE(differences(rows.at(name), rows.at(from_one)) == Names{"logit_scale"}, name);
  CHECK(differences(rows.at("softmax-ppsbn-row"), rows.at("softmax-ppsbn")) == Names{"presbn"});
  CHECK(differences(rows.at("softmax-ppsbn-row-scale-16"), rows.at("softmax-ppsbn-scale-16")) ==
        Names{"presbn"});
  CHECK(differences(rows.at("rmfa-row-scale-8"), rows.at("rmfa-scale-8")) ==
        Names{"denominator", "presbn"});
  CHECK(differences(rows.at("rmfa-poly2-row-scale-8"), rows.at("rmfa-row-scale-8")) ==
        Names{"kernel", "features"});
  CHECK(differences(rows.at("rmfa-poly2-row-scale-8-low-floor"),
                    rows.at("rmfa-poly2-row-scale-8")) == Names{"denominator"});
  CHECK(differences(rows.at("exact-poly2-row-scale-8"), rows.at("rmfa-poly2-row-scale-8")) ==
        Names{"attention"});
  CHECK(differences(rows.at("rmfa-512-row-scale-8"), rows.at("rmfa-row-scale-8")) ==
        Names{"features"});
}

TEST_CASE("multi30k study: committed results have the settings of their rows and presets") {
  const fs::path results = fs::path(MACGRAD_SOURCE) / "experiments/multi30k/results";
  const auto check = [&](const std::string& folder, const Multi30kSettings& settings) {
    CAPTURE(folder);
    const Json committed = read_json((results / folder / "results.json").string()).at("settings");
    const Json now = to_json(settings);
    int compared = 0;
    for (const auto& [name, value] : now.items()) {
      if (setting_role(name) != SettingRole::model || !committed.contains(name)) continue;
      if (name == "common" || name == "bleu_every") continue;
      CHECK_MESSAGE(value == committed.at(name), name);
      ++compared;
    }
    CHECK(compared > 35);
  };
  for (const StudyRun& run : study_runs()) {
    Multi30kSettings s = study_settings();
    run.change(s);
    for (const char* study : {"study", "study-seed-2", "study-seed-3"}) {
      const std::string folder = fmt::format("{}/{}", study, run.name);
      if (fs::exists(results / folder / "results.json")) check(folder, s);
    }
  }
  Multi30kSettings tiny;
  apply_preset(tiny, "transformer-tiny");
  check("transformer-tiny-en-de", tiny);
  tiny.batch_tokens = 4096;
  tiny.warmup = 400;
  check("ppsbn-1500-updates/softmax", tiny);
  tiny.ppsbn = true;
  check("ppsbn-1500-updates/softmax-ppsbn", tiny);
  apply_preset(tiny, "transformer-tiny");
  tiny.ppsbn = false;
  tiny.source = "de";
  tiny.target = "en";
  check("transformer-tiny-de-en", tiny);
}

TEST_CASE("multi30k study: runs what is missing and compares") {
  const Folder folder;
  Multi30kSettings s = testing::tiny();
  s.epochs = 2;
  s.max_updates = 10;
  s.common.out = folder / "study";
  CHECK_THROWS_WITH_AS(run_study(s, {"softmax", "soft"}), doctest::Contains("softmax-ppsbn"),
                       Error);
  CHECK_FALSE(fs::exists(folder / "study/softmax"));
  REQUIRE(run_study(s, {"softmax", "softmax-ppsbn"}) == 0);
  const auto written = fs::last_write_time(folder / "study/softmax/results.json");
  REQUIRE(run_study(s, {"softmax", "softmax-ppsbn", "rmfa"}) == 0);
  CHECK(fs::last_write_time(folder / "study/softmax/results.json") == written);
  const CsvTable table = read_csv(folder / "study/study.csv");
  const std::vector<double> loss = table.numbers("valid_loss");
  REQUIRE(loss.size() == 3);
  const std::string page = contents(folder / "study/study.md");
  for (const double x : loss) CHECK((x > 0.5 && x < 6));
  CHECK(loss[0] == read_json(folder / "study/softmax/results.json")
                       .at("scores")
                       .at("val")
                       .at("loss")
                       .get<double>());
  CHECK(page.find("| `rmfa` |") != std::string::npos);
  CHECK(page.find("| 10 |") != std::string::npos);
  CHECK(page.find("10 updates and no more") != std::string::npos);
  CHECK(fs::exists(folder / "study/figure3.gp"));
  CHECK(fs::exists(folder / "study/curves.gp"));
}

TEST_CASE("multi30k study: --only trains, the tables hold every complete row of the budget") {
  const Folder folder;
  Multi30kSettings s = testing::tiny();
  s.epochs = 1;
  s.max_updates = 3;
  s.common.out = folder / "study";
  REQUIRE(run_study(s, {"softmax"}) == 0);
  // A loss that was not finite is null in JSON.
  const std::string path = folder / "study/softmax/results.json";
  Json results = read_json(path);
  results["scores"]["val"]["loss"] = nullptr;
  write_json(path, results);
  REQUIRE(run_study(s, {"softmax-ppsbn"}) == 0);
  CsvTable table = read_csv(folder / "study/study.csv");
  REQUIRE(table.rows.size() == 2);
  CHECK(table.rows[0][0] == "softmax");
  CHECK(table.rows[0][3].empty());
  CHECK(table.rows[0][4].empty());
  CHECK_FALSE(table.rows[1][3].empty());
  s.max_updates = 4;
  REQUIRE(run_study(s, {"softmax"}) == 0);
  table = read_csv(folder / "study/study.csv");
  REQUIRE(table.rows.size() == 1);
  CHECK(table.rows[0][2] == "4");
  s.max_updates = 2;
  CHECK_THROWS_WITH_AS(run_study(s, {"softmax"}), doctest::Contains("beyond --max-updates 2"),
                       Error);
}

TEST_CASE("multi30k study: rows that another process completes meanwhile are in the tables") {
  const Folder folder;
  Multi30kSettings s = testing::tiny();
  s.epochs = 1;
  s.max_updates = 3;
  s.common.out = folder / "other";
  REQUIRE(run_study(s, {"softmax"}) == 0);
  s.common.out = folder / "study";
  std::thread other([&] {
    while (!fs::exists(folder / "study/rmfa-iid/settings.json"))
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    fs::copy(folder / "other/softmax", folder / "study/softmax", fs::copy_options::recursive);
  });
  const int code = run_study(s, {"rmfa-iid"});
  other.join();
  REQUIRE(code == 0);
  CHECK(read_csv(folder / "study/study.csv").rows.size() == 2);
}

TEST_CASE("multi30k study: results without their checkpoint stay, of other data they are refused") {
  const Folder folder;
  Multi30kSettings s = testing::tiny();
  s.epochs = 1;
  s.max_updates = 3;
  s.common.out = folder / "study";
  REQUIRE(run_study(s, {"softmax"}) == 0);
  fs::remove(folder / "study/softmax/checkpoint.safetensors");
  const std::string path = folder / "study/softmax/results.json";
  const auto written = fs::last_write_time(path);
  REQUIRE(run_study(s, {"softmax"}) == 0);
  CHECK(fs::last_write_time(path) == written);
  Multi30kSettings longer = s;
  longer.max_updates = 4;
  CHECK_THROWS_WITH_AS(run_study(longer, {"softmax"}), doctest::Contains("other settings"), Error);
  CHECK(fs::last_write_time(path) == written);

  Json results = read_json(path);
  results["data"]["crc32"]["train_source"] = "00000000";
  write_json(path, results);
  CHECK_THROWS_WITH_AS(run_study(s, {"softmax-ppsbn"}),
                       doctest::Contains("softmax and softmax-ppsbn were trained on other data"),
                       Error);
  results.erase("scores");
  write_json(path, results);
  CHECK_THROWS_WITH_AS(run_study(s, {"softmax"}), doctest::Contains(path.c_str()), Error);
}

TEST_CASE("multi30k study: a folder that was moved is not run again") {
  const Folder folder;
  Multi30kSettings s = testing::tiny();
  s.epochs = 1;
  s.max_updates = 3;
  s.common.out = folder / "study";
  REQUIRE(run_study(s, {"softmax"}) == 0);
  const auto written = fs::last_write_time(folder / "study/softmax/results.json");
  fs::rename(folder / "study", folder / "moved");
  s.common.out = folder / "moved";
  s.checkpoint_minutes = 7;
  REQUIRE(run_study(s, {"softmax"}) == 0);
  CHECK(fs::last_write_time(folder / "moved/softmax/results.json") == written);
}

TEST_CASE("multi30k study: the command takes --toy, and no option that a row sets") {
  const Folder folder;
  const std::string out = folder / "study";
  const auto command = [&](std::vector<const char*> words) {
    words.insert(words.begin(), {"study", "--toy", "--only", "softmax", "--max-updates", "2",
                                 "--threads", "1", "--out", out.c_str()});
    return study_command(static_cast<int>(words.size()), words.data());
  };
  for (const std::vector<const char*>& words :
       std::vector<std::vector<const char*>>{{"--attention", "rmfa"},
                                             {"--ppsbn"},
                                             {"--train-logit-scale"},
                                             {"--preset", "quick"},
                                             {"--presbn", "row"},
                                             {"--denominator", "none"}}) {
    CAPTURE(words[0]);
    CHECK(command(words) == 2);
    CHECK_FALSE(fs::exists(out));
  }
  // What only some rows read is not refused.
  CHECK(command({"--epochs", "1", "--beam", "1", "--eval-draws", "2"}) == 0);
  CHECK(read_csv(out + "/study.csv").rows.size() == 1);
}

TEST_CASE("multi30k study: a run that diverges is a row, not the end") {
  const Folder folder;
  Multi30kSettings s = testing::tiny();
  s.epochs = 1;
  s.lr = 1e30;
  s.warmup = 0;
  s.clip = 0;
  s.common.out = folder / "study";
  REQUIRE(run_study(s, {"softmax"}) == 1);
  CHECK(contents(folder / "study/study.md").find("lower --lr") != std::string::npos);
  // It stays one when other rows are trained.
  REQUIRE(run_study(s, {"softmax-ppsbn"}) == 1);
  const CsvTable table = read_csv(folder / "study/study.csv");
  CHECK(table.rows.size() == 2);
  CHECK(contents(folder / "study/study.csv").find("softmax,") != std::string::npos);
}

}  // namespace macgrad::experiments
