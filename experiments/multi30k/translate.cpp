// multi30k translate: lines in, one translation a line out. On a terminal each line is answered at
// once; otherwise lines are read in blocks, so that batches are full, and the order is kept.
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iostream>

#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/experiments/common/text_files.h"
#include "macgrad/experiments/common/unicode.h"
#include "macgrad/experiments/multi30k/commands.h"
#include "macgrad/experiments/multi30k/run_files.h"
#include "macgrad/experiments/multi30k/translator.h"

namespace macgrad::experiments {
namespace {

constexpr size_t kBlockLines = 1000;

struct TranslateOptions {
  Multi30kSettings settings;  // common, beam and length_penalty
  std::string checkpoint, input, output;
};

// Line `number` of standard input without its end, read by read_lines' rules. False at the end.
bool next_line(std::string& line, int64_t number) {
  errno = 0;
  if (!std::getline(std::cin, line)) {
    require(errno == 0, "standard input: line {}: {}", number, std::strerror(errno));
    return false;
  }
  if (number == 1 && line.starts_with("\xEF\xBB\xBF")) line.erase(0, 3);
  if (line.ends_with('\r')) line.pop_back();
  return true;
}

void check_line(const std::string& line, int64_t number) {
  require(find_invalid_utf8(line) == std::string_view::npos && line.find('\0') == std::string::npos,
          "standard input: line {}: not valid UTF-8 text; convert it to UTF-8 first", number);
}

// Calls take(lines) with what is translated together: one line on a terminal, else blocks. A typed
// line that is no text is answered by its error, and the next one is read.
template <class F>
void read_standard_input(F&& take) {
  const bool typed = isatty(STDIN_FILENO) != 0;
  std::vector<std::string> lines;
  std::string line;
  for (int64_t number = 1;; ++number) {
    if (typed) say(stderr, "> ");
    if (!next_line(line, number)) break;
    try {
      check_line(line, number);
    } catch (const Error& error) {
      if (!typed) throw;
      say(stderr, "{}\n", error.what());
      continue;
    }
    lines.push_back(line);
    if (typed || lines.size() == kBlockLines) {
      take(lines);
      lines.clear();
    }
  }
  if (typed) say(stderr, "\n");
  if (!lines.empty()) take(lines);
}

int run(TranslateOptions& o) {
  // On what the model was trained does not bind where it translates.
  apply_common_options(o.settings.common);
  if (!o.output.empty()) check_writable(o.output);
  Translator translator(checkpoint_at(o.checkpoint), device_of(o.settings.common));
  const nn::SearchSettings search{o.settings.beam, o.settings.length_penalty};
  std::string all;
  const auto take = [&](const std::vector<std::string>& lines) {
    std::string text;
    for (const std::string& line : translator.translate(lines, search)) text += line + "\n";
    if (!o.output.empty()) {
      all += text;
      return;
    }
    require(
        std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0,
        "standard output: the translations cannot be written");
  };
  if (o.input.empty()) {
    read_standard_input(take);
  } else {
    take(read_lines(o.input));
  }
  if (!o.output.empty()) write_file_atomically(o.output, std::string_view(all));
  return 0;
}

}  // namespace

int translate_command(int argc, const char* const* argv) {
  TranslateOptions o;
  o.settings.beam = 5;
  return run_program(
      argc, argv, "multi30k translate",
      "Translates lines of standard input, one per line, with a trained model.",
      [&](Options& options) {
        options.text("--checkpoint", o.checkpoint,
                     "A run, or one of its models with the vocabularies beside it", "RUN");
        options.require("--checkpoint");
        declare_search_options(options, o.settings);
        options.text("--input", o.input, "File to translate (default: standard input)", "FILE");
        options.text("--output", o.output,
                     "File for the translations, written when all are made (default: standard "
                     "output)",
                     "FILE");
        add_device_options(options, o.settings.common);
      },
      [&] { return run(o); });
}

}  // namespace macgrad::experiments
