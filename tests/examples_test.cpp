// The programs of experiments/examples: each runs and prints figures that a wrong result would
// change; README.md quotes one of them word for word.
#ifdef MACGRAD_EXAMPLES
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>

#include "macgrad/tests/errors.h"

namespace macgrad {
namespace {
namespace fs = std::filesystem;
using testing::contains;

// What an example prints; it must exit with 0.
std::string output_of(const std::string& example) {
  std::FILE* pipe = popen((std::string(MACGRAD_EXAMPLES) + "/" + example + " 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::string text;
  char buffer[4096];
  for (size_t n = 0; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) text.append(buffer, n);
  INFO(text);
  REQUIRE(pclose(pipe) == 0);
  return text;
}

// The number behind the last `label`.
double number(const std::string& text, const std::string& label) {
  const size_t at = text.rfind(label);
  INFO(text);
  INFO(label);
  REQUIRE(at != std::string::npos);
  const char* start = text.c_str() + at + label.size();
  char* end = nullptr;
  const double value = std::strtod(start, &end);
  REQUIRE(end != start);
  return value;
}

std::string content(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE_MESSAGE(file.good(), path.string());
  return {std::istreambuf_iterator<char>(file), {}};
}

const std::map<std::string, std::function<void(const std::string&)>>& checks() {
  static const std::map<std::string, std::function<void(const std::string&)>> table{
      {"mlp",
       [](const std::string& text) {
         CHECK(number(text, "step 1000: loss ") < 5e-3);  // 0.5 before training
         CHECK(number(text, "gradient of 2.weight: norm ") > 0.0);
         CHECK(number(text, "slope: mean squared error ") < 0.1);  // 4.5 for a slope of 0
       }},
      {"transformer",
       [](const std::string& text) {
         CHECK(number(text, "accuracy ") > 0.95);  // 0.25 by chance
         CHECK(number(text, "smallest denominator ") < 1.0);
       }},
      {"own_kernel",
       [](const std::string& text) {
         CHECK(contains(text, "coefficients 1 3 6 10"));
         CHECK(number(text, "D = 1024: squared error of the output ") < 3e-4);
         CHECK(number(text, "of the gradient of q ") < 0.03);  // 1 for a gradient of 0
       }},
      {"own_feature_map", [](const std::string& text) { CHECK(number(text, "ratio ") > 1.5); }},
      {"inspect_gradients", [](const std::string& text) {
         CHECK(number(text, "gradient of attention.q_proj.weight: shape (16, 16), norm ") > 1e-3);
         CHECK(number(text, "gradient of the denominators: norm ") > 1e-3);
         CHECK(number(text, "the hook scales the gradient by ") == 0.5);
         CHECK(number(text, "|gradient|^2: ") > 0.0);
         CHECK(number(text, "relative difference ") < 1e-7);
       }}};
  return table;
}

const fs::path kSource = MACGRAD_SOURCE;

TEST_CASE("every example runs and prints the figures it should") {
  std::vector<std::string> found, checked;
  for (const auto& entry : fs::directory_iterator(kSource / "experiments/examples"))
    if (entry.path().extension() == ".cpp") found.push_back(entry.path().stem().string());
  std::sort(found.begin(), found.end());
  for (const auto& [name, check] : checks()) checked.push_back(name);
  CHECK(found == checked);
  for (const auto& [name, check] : checks()) {
    CAPTURE(name);
    check(output_of(name));
    const std::string source = content(kSource / "experiments/examples" / (name + ".cpp"));
    CHECK(source.starts_with("// examples/" + name + ": "));
    CHECK(std::count(source.begin(), source.end(), '\n') <= 80);
  }
}

TEST_CASE("README.md quotes the example mlp word for word") {
  const std::string source = content(kSource / "experiments/examples/mlp.cpp");
  const size_t start = source.find("#include");
  REQUIRE(start != std::string::npos);
  CHECK(contains(content(kSource / "README.md"), "```cpp\n" + source.substr(start) + "```\n"));
}

}  // namespace
}  // namespace macgrad
#endif
