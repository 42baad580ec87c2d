// `inspect bias`: what has no bias shows none beyond chance, the quotient's is the one that theory
// predicts, and the command leaves its tables.
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

#include "macgrad/experiments/common/csv.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/inspect/bias.h"
#include "macgrad/tests/temporary_folder.h"

namespace macgrad::experiments {
namespace {
namespace fs = std::filesystem;

using Folder = testing::TemporaryFolder;

BiasSettings small() {
  BiasSettings s;
  s.features = 24;
  s.length = 6;
  s.heads = 2;
  s.dim = 8;
  s.redraws = 4000;
  s.logit_scale = 3.0;
  s.draws = "official";
  s.denominator = "none";
  return s;
}

const BiasRow& row(const BiasResult& result, std::string_view quantity, int64_t position = -1) {
  for (const BiasRow& r : result.rows)
    if (r.quantity == quantity && r.position == position) return r;
  throw Error("no row {} {}", quantity, position);
}

bool go_on(int64_t) {
  return true;
}

TEST_CASE("inspect bias: numerators and denominators have none, the output has the predicted one") {
  for (const bool causal : {false, true}) {
    CAPTURE(causal);
    BiasSettings s = small();
    s.causal = causal;
    const BiasResult result = measure_bias(s, go_on);
    CHECK(result.draws == s.redraws);
    for (const char* unbiased : {"numerator", "denominator"}) {
      const BiasRow& r = row(result, unbiased);
      CAPTURE(unbiased);
      // The norm of many means of no expectation is about bias_se.
      CHECK(r.bias < 1.5 * r.bias_se);
      CHECK(r.bias > 0.2 * r.bias_se);
      CHECK(r.deviation > 0.01 * r.exact);
      CHECK(std::isnan(r.predicted));
    }
    const BiasRow& output = row(result, "output");
    CHECK(output.bias > 2.5 * output.bias_se);
    CHECK(output.predicted == doctest::Approx(output.bias).epsilon(0.35));
    for (const char* gradient : {"dq", "dk", "dv"}) CHECK(row(result, gradient).exact > 0);
    // All positions together are the positions.
    double squares = 0;
    for (int64_t t = 0; t < s.length; ++t) {
      const double exact = row(result, "dk", t).exact;
      squares += exact * exact;
    }
    CHECK(std::sqrt(squares) == doctest::Approx(row(result, "dk").exact));
  }
}

TEST_CASE("inspect bias: a first position that sees itself alone has an exact output") {
  BiasSettings s = small();
  s.causal = true;
  s.redraws = 20;
  const BiasResult result = measure_bias(s, go_on);
  const BiasRow& first = row(result, "output", 0);
  CHECK(first.bias < 1e-12 * first.exact);
  CHECK(first.deviation < 1e-12 * first.exact);
  CHECK(row(result, "numerator", 0).deviation > 1e-3);
  CHECK(row(result, "output", 1).deviation > 1e-3);
}

TEST_CASE("inspect bias: a polynomial whose features are all exact has no error at all") {
  BiasSettings s = small();
  s.kernel = "poly:c=1,k=1";
  s.draws = "h01";
  s.redraws = 5;
  const BiasResult result = measure_bias(s, go_on);
  for (const BiasRow& r : result.rows) {
    CAPTURE(r.quantity);
    CHECK(r.deviation < 1e-10);
    CHECK(r.bias < 1e-10);
  }
}

TEST_CASE("inspect bias: the command") {
  const Folder folder;
  const std::string out = folder / "bias";
  const std::vector<const char*> words = {"bias",     "--length", "5", "--features", "16", "--dim",
                                          "4",        "--heads",  "1", "--redraws",  "30", "--out",
                                          out.c_str()};
  REQUIRE(bias_command(static_cast<int>(words.size()), words.data()) == 0);
  const CsvTable table = read_csv(out + "/bias.csv");
  CHECK(table.rows.size() == 6 * (1 + 5));
  CHECK(table.rows[0][0] == "numerator");
  CHECK(table.rows[0][1] == "all");
  CHECK(read_json(out + "/bias.json").at("draws") == 30);
  CHECK(fs::exists(out + "/bias.gp"));
  const std::vector<const char*> wrong = {"bias", "--kernel", "gauss"};
  CHECK(bias_command(static_cast<int>(wrong.size()), wrong.data()) == 1);
  // Stopped: what was measured stands.
  const BiasResult stopped = measure_bias(small(), [](int64_t done) { return done < 7; });
  CHECK(stopped.draws == 7);
}

}  // namespace
}  // namespace macgrad::experiments
