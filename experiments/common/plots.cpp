// gnuplot is started without a shell, so file names need no quoting but gnuplot's own. Text is set
// with `noenhanced`: an underscore in "log10_nmse" is an underscore.
#include "experiments/common/plots.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "core/error.h"
#include "experiments/common/output_files.h"
#include "experiments/common/text_files.h"

extern char** environ;

namespace macgrad::experiments {
namespace fs = std::filesystem;
namespace {

// A single-quoted string of gnuplot: only the quote itself is special. A line end would end it.
std::string quoted(const std::string& text) {
  std::string out = "'";
  for (char c : text) {
    if (c == '\n' || c == '\r') c = ' ';
    out.append(c == '\'' ? 2 : 1, c);
  }
  return out + "'";
}

std::string number(double value) {
  return std::isfinite(value) ? fmt::format("{}", value) : "NaN";
}

std::string labels(const std::string& title, const std::string& x, const std::string& y) {
  return fmt::format(
      "set title {} noenhanced\nset xlabel {} noenhanced\nset ylabel {} noenhanced\n",
      quoted(title), quoted(x), quoted(y));
}

std::string tics(const char* axis, const std::vector<std::string>& names) {
  std::string text = fmt::format("set {}tics noenhanced out nomirror (", axis);
  for (std::size_t i = 0; i < names.size(); ++i) {
    text += fmt::format("{}{} {}", i > 0 ? ", " : "", quoted(names[i]), i);
  }
  return text + ")\n";
}

void warn(const std::string& text) {
  fmt::print(stderr, "warning: {}\n", text);
}

// Exit status of gnuplot on a script, its messages in `log`; -1: not found.
int run_gnuplot(const std::string& gnuplot, const std::string& script, const std::string& log) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  std::string program = gnuplot;
  std::string argument = script;
  char* arguments[] = {program.data(), argument.data(), nullptr};
  pid_t child = 0;
  const int error = posix_spawnp(&child, program.c_str(), &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return -1;
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status)) return 1;
  return WEXITSTATUS(status) == 127 ? -1 : WEXITSTATUS(status);
}

std::string first_message(const std::string& log) {
  try {
    for (const std::string& line : read_lines(log)) {
      if (line.find_first_not_of(" \t^") != std::string::npos) return line;
    }
  } catch (const Error&) {
    return "its messages cannot be read";
  }
  return "no message";
}

// The kept script names its pictures by file name: run it in its folder.
bool draw(const std::string& body, const std::string& base, const std::string& gnuplot, int width,
          int height) {
  const std::string name = fs::path(base).filename().string();
  const auto script_for = [&](const std::string& svg, const std::string& png) {
    return fmt::format(
        "# Run with: gnuplot {}.gp\n{}"
        "set terminal svg size {w},{h} font 'sans,14' background 'white'\nset output {}\neval "
        "draw\n"
        "set terminal pngcairo size {w},{h} font 'sans,11'\nset output {}\neval draw\nset output\n",
        name, body, quoted(svg), quoted(png), fmt::arg("w", width), fmt::arg("h", height));
  };
  const std::string plain = base + ".gp";
  write_file_atomically(plain, std::string_view(script_for(name + ".svg", name + ".png")));

  const std::string stem = fmt::format("{}.tmp-{}", base, ::getpid());
  const std::string svg = stem + ".svg";
  const std::string png = stem + ".png";
  const std::string script = stem + ".gp";
  const std::string log = stem + ".log";
  write_file_atomically(script, std::string_view(script_for(svg, png)));
  const int status = run_gnuplot(gnuplot, script, log);
  std::error_code error;
  const bool made = status == 0 && fs::file_size(svg, error) > 0 && !error &&
                    fs::file_size(png, error) > 0 && !error;
  if (made) {
    fs::rename(svg, base + ".svg");
    fs::rename(png, base + ".png");
  } else if (status < 0) {
    warn(
        fmt::format("no pictures: {} was not found. Install it (apt-get install gnuplot-nox), then "
                    "run in {}: gnuplot {}.gp. All other results are kept.",
                    gnuplot, fs::absolute(base).parent_path().string(), name));
  } else {
    warn(fmt::format("no pictures: {} failed on {}: {}. All other results are kept.", gnuplot,
                     plain, first_message(log)));
  }
  for (const std::string& leftover : {svg, png, script, log}) fs::remove(leftover, error);
  return made;
}

}  // namespace

std::string gnuplot_script(const HeatMap& map) {
  if (map.rows.empty() || map.columns.empty() ||
      map.values.size() != map.rows.size() * map.columns.size()) {
    throw Error("heat map \"{}\": {} values for {} rows x {} columns", map.title, map.values.size(),
                map.rows.size(), map.columns.size());
  }
  double low = INFINITY;
  double high = -INFINITY;
  for (double value : map.values) {
    if (!std::isfinite(value)) continue;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  if (low > high) low = high = 0;
  if (low == high) high = low + 1;  // gnuplot refuses an empty range

  std::string text = labels(map.title, map.x_label, map.y_label);
  text += fmt::format("set cblabel {} noenhanced\n", quoted(map.value_label));
  text += tics("x", map.columns) + tics("y", map.rows);
  text += fmt::format("set xrange [-0.5:{}]\nset yrange [-0.5:{}]\nset cbrange [{}:{}]\n",
                      static_cast<double>(map.columns.size()) - 0.5,
                      static_cast<double>(map.rows.size()) - 0.5, low, high);
  // Viridis: rises in lightness, so the order survives grey print and colour blindness.
  text +=
      "set palette defined (0 '#440154', 1 '#3b528b', 2 '#21918c', 3 '#5ec962', 4 '#fde725')\n"
      "unset key\nset datafile missing 'NaN'\n$data << EOD\n";
  for (std::size_t r = 0; r < map.rows.size(); ++r) {
    for (std::size_t c = 0; c < map.columns.size(); ++c) {
      text += fmt::format("{} {} {}\n", c, r, number(map.values[r * map.columns.size() + c]));
    }
  }
  // Numbers are white on dark cells and black on light ones.
  text += fmt::format(
      "EOD\nlight(v) = v > {} ? 0x000000 : 0xffffff\n"
      "draw = \"plot $data using 1:2:3 with image pixels, "
      "$data using 1:2:(valid(3) ? sprintf('%.2f', $3) : ''):(light($3)) "
      "with labels textcolor rgb variable\"\n",
      low + 0.6 * (high - low));
  return text;
}

std::string gnuplot_script(const CurvePlot& plot) {
  if (plot.curves.empty()) throw Error("plot \"{}\": no curves", plot.title);
  std::string text = labels(plot.title, plot.x_label, plot.y_label);
  if (plot.log_x) text += "set logscale x\n";
  if (plot.log_y) text += "set logscale y\nset format y '%g'\n";
  text += "set grid\nset key noenhanced outside right\nset datafile missing 'NaN'\n";
  std::string commands;
  std::string names;
  for (std::size_t i = 0; i < plot.curves.size(); ++i) {
    const Curve& curve = plot.curves[i];
    const bool bars = !curve.error.empty();
    if (curve.x.empty() || curve.x.size() != curve.y.size() ||
        (bars && curve.error.size() != curve.x.size())) {
      throw Error("plot \"{}\": curve \"{}\" has {} x, {} y and {} error values", plot.title,
                  curve.name, curve.x.size(), curve.y.size(), curve.error.size());
    }
    text += fmt::format("$curve{} << EOD\n", i);
    for (std::size_t k = 0; k < curve.x.size(); ++k) {
      text += fmt::format("{} {}", number(curve.x[k]), number(curve.y[k]));
      text += bars ? fmt::format(" {}\n", number(curve.error[k])) : "\n";
    }
    text += "EOD\n";
    names += fmt::format("name{} = {}\n", i, quoted(curve.name));
    commands +=
        fmt::format("{}$curve{i} using 1:2{} linecolor {color} title name{i}", i > 0 ? ", " : "",
                    bars ? ":3 with yerrorlines pointtype 7 pointsize 0.5 linewidth 2"
                         : " with linespoints pointtype 7 pointsize 0.5 linewidth 2",
                    fmt::arg("i", i), fmt::arg("color", i + 1));
  }
  return text + names + fmt::format("draw = \"plot {}\"\n", commands);
}

bool write_plot(const HeatMap& map, const std::string& base, const std::string& gnuplot) {
  const int width = 220 + 80 * static_cast<int>(std::min<std::size_t>(map.columns.size(), 40));
  const int height = 150 + 45 * static_cast<int>(std::min<std::size_t>(map.rows.size(), 60));
  return draw(gnuplot_script(map), base, gnuplot, std::max(width, 520), std::max(height, 360));
}

bool write_plot(const CurvePlot& plot, const std::string& base, const std::string& gnuplot) {
  return draw(gnuplot_script(plot), base, gnuplot, 860, 480);
}

}  // namespace macgrad::experiments
