// Putting the record into the page's template.
#include "macgrad/experiments/inspect/page.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

#include "macgrad/core/error.h"
#include "macgrad/experiments/common/arguments.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/progress.h"

namespace macgrad::experiments {
namespace {

#include "page_strings.inc"

void replace(std::string& text, std::string_view placeholder, std::string_view by) {
  const size_t at = text.find(placeholder);
  require(at != std::string::npos, "the page's template has no {}", placeholder);
  text.replace(at, placeholder.size(), by);
}

// JSON in which no character means anything to HTML; strings alone can hold them.
std::string harmless(const std::string& json) {
  std::string text;
  text.reserve(json.size());
  for (const char c : json) {
    if (c == '<' || c == '>' || c == '&')
      text += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    else
      text += c;
  }
  return text;
}

}  // namespace

std::string page_of(const Json& record) {
  std::string scripts;
  for (const std::string_view script : kScripts) scripts += script;
  std::string page(kHtml);
  replace(page, "/*STYLE*/", kStyle);
  replace(page, "/*SCRIPT*/", scripts);
  // Last, so that what a record holds is never taken for a placeholder.
  replace(page, "RECORD_JSON",
          harmless(record.dump(-1, ' ', false, Json::error_handler_t::replace)));
  return page;
}

Json op_formulas() {
  return {
      {"neg", "y = −x"},
      {"abs", "y = |x|"},
      {"sign", "y = sign x"},
      {"exp", "y = exp x"},
      {"expm1", "y = exp x − 1"},
      {"log", "y = ln x"},
      {"log1p", "y = ln(1 + x)"},
      {"sqrt", "y = √x"},
      {"rsqrt", "y = 1/√x"},
      {"reciprocal", "y = 1/x"},
      {"sin", "y = sin x"},
      {"cos", "y = cos x"},
      {"tanh", "y = tanh x"},
      {"sigmoid", "y = 1/(1 + exp(−x))"},
      {"relu", "y = max(x, 0)"},
      {"gelu", "y = x·Φ(x), Φ the normal distribution function"},
      {"gelu_tanh", "y = x/2·(1 + tanh(√(2/π)(x + 0.044715x³)))"},
      {"erf", "y = erf x"},
      {"add", "y = a + b"},
      {"sub", "y = a − b"},
      {"mul", "y = a·b, element by element"},
      {"div", "y = a/b"},
      {"maximum", "y = max(a, b)"},
      {"minimum", "y = min(a, b)"},
      {"pow", "y = a^b"},
      {"signed_pow", "y = sign(a)|a|^b"},
      {"relu_grad", "y = b where a > 0, else 0"},
      {"where", "y = a where the condition holds, else b"},
      {"dropout", "y = x/(1 − p) where kept, else 0"},
      {"matmul", "Y = A·B"},
      {"linear", "Y = X·Wᵀ + b"},
      {"sum", "y = Σ x over the dimensions named"},
      {"max", "y = the largest x over a dimension, and where it stands"},
      {"min", "y = the smallest x over a dimension, and where it stands"},
      {"cumsum", "y_i = Σ_{j≤i} x_j"},
      {"reshape", "the same elements in another shape"},
      {"permute", "dimensions in another order"},
      {"transpose", "two dimensions exchanged"},
      {"expand", "repeated along dimensions of extent 1"},
      {"squeeze", "a dimension of extent 1 left out"},
      {"unsqueeze", "a dimension of extent 1 put in"},
      {"slice", "a range of one dimension"},
      {"place", "x in a range of one dimension, zeros elsewhere"},
      {"pad", "x with zeros around it"},
      {"concat", "parts one after the other along a dimension"},
      {"contiguous", "the same values, rows packed"},
      {"cast", "the same values in another dtype"},
      {"identity", "y = x"},
      {"gather", "y_k = x at index k of a dimension"},
      {"index_select", "y_k = row index_k of x (an embedding)"},
      {"index_add", "row index_k of y += row k of the source"},
      {"scatter_add", "y at index k += source_k"},
      {"softmax", "y_i = exp x_i/Σ_j exp x_j"},
      {"log_softmax", "y_i = x_i − ln Σ_j exp x_j"},
      {"layer_norm", "y = (x − mean)/√(variance + ε)·w + b, over the last dimension"},
      {"cross_entropy", "−Σ_t target_t·log_softmax(x)_t, the target smoothed"},
      {"softmax_attention", "softmax(τ·Q·Kᵀ/√d)·V"},
      {"rmfa", "Φ(Q)(Φ(K)ᵀ[V, 1]) as numerator and denominator, their quotient"},
      {"pre_sbn", "x̂ = (x − μ)/√(σ² + ε), y = x̂/|x̂|"},
      {"post_sbn", "y = s·(s² + ε²)^((β−1)/2), s = γ·x"},
  };
}

int page_command(int argc, const char* const* argv) {
  std::string record, out;
  return run_program(
      argc, argv, "inspect page", "Makes the page of a graph.json anew.",
      [&](Options& options) {
        options.text("record", record, "graph.json of an inspection", "FILE");
        options.require("record");
        options.text("--out", out, "Folder of the page (default: the record's)", "FOLDER");
      },
      [&] {
        const Json json = read_json(record);
        require(json.is_object() && json.value("format", Json()) == kRecordFormat,
                "{}: not a graph.json of inspect: its \"format\" is not \"{}\"", record,
                kRecordFormat);
        namespace fs = std::filesystem;
        const fs::path folder = out.empty() ? fs::path(record).parent_path() : fs::path(out);
        if (!folder.empty()) fs::create_directories(folder);
        const std::string page = (folder / "inspect.html").string();
        write_file_atomically(page, page_of(json));
        say("Page: {}\n", page);
        return 0;
      });
}

}  // namespace macgrad::experiments
