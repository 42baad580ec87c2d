// gnuplot is started without a shell, so file names need no quoting but gnuplot's own. Text is set
// with `noenhanced`: an underscore in "log10_nmse" is an underscore.
#include "macgrad/experiments/common/plots.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <filesystem>

#include "macgrad/core/error.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/experiments/common/text_files.h"

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
  say(stderr, "warning: {}\n", text);
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

  // Script and messages are never committed.
  AtomicFile svg(base + ".svg"), png(base + ".png"), script(base + ".run.gp"), log(base + ".log");
  const std::string commands = script_for(svg.temporary(), png.temporary());
  script.write(commands.data(), commands.size());
  const int status = run_gnuplot(gnuplot, script.temporary(), log.temporary());
  std::error_code error;
  const bool made = status == 0 && fs::file_size(svg.temporary(), error) > 0 && !error &&
                    fs::file_size(png.temporary(), error) > 0 && !error;
  if (made) {
    svg.commit();
    png.commit();
  } else if (status < 0) {
    warn(
        fmt::format("no pictures: {} was not found. Install it (apt-get install gnuplot-nox), then "
                    "run in {}: gnuplot {}.gp. All other results are kept.",
                    gnuplot, fs::absolute(base).parent_path().string(), name));
  } else {
    warn(fmt::format("no pictures: {} failed on {}: {}. All other results are kept.", gnuplot,
                     plain, first_message(log.temporary())));
  }
  return made;
}

// Colours that stay apart in print and for the colour-blind (Okabe and Ito 2008), without yellow.
std::string line_colours() {
  constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                      "#e69f00", "#56b4e9", "#000000", "#999999"};
  std::string text;
  for (size_t i = 0; i < std::size(kColours); ++i)
    text += fmt::format("set linetype {} linecolor rgb '{}'\n", i + 1, kColours[i]);
  return text + fmt::format("set linetype cycle {}\n", std::size(kColours));
}

// Tics at 1, 2 and 5 of each decade, where decades alone would be too few.
std::string log_tics(const CurvePlot& plot) {
  double low = INFINITY;
  double high = 0;
  for (const Curve& curve : plot.curves) {
    for (const double y : curve.y) {
      if (!std::isfinite(y) || y <= 0) continue;
      low = std::min(low, y);
      high = std::max(high, y);
    }
  }
  if (low > high || high / low > 1e4) return "";
  std::string text;
  for (double decade = std::pow(10, std::floor(std::log10(low))); decade <= high; decade *= 10)
    for (const int part : {1, 2, 5})
      text += fmt::format("{}{:.6g}", text.empty() ? "" : ", ", part * decade);
  return fmt::format("set yrange [*:*] noextend\nset ytics ({})\n", text);
}

// Few whole numbers, such as epochs, have no halves between them.
bool counts_few(const CurvePlot& plot) {
  double low = INFINITY;
  double high = -INFINITY;
  for (const Curve& curve : plot.curves) {
    for (const double x : curve.x) {
      if (x != std::floor(x)) return false;
      low = std::min(low, x);
      high = std::max(high, x);
    }
  }
  return !plot.log_x && high - low <= 12;
}

std::string axes(const CurvePlot& plot) {
  std::string text = labels(plot.title, plot.x_label, plot.y_label);
  if (plot.log_x) text += "set logscale x\n";
  if (plot.log_y) text += "set logscale y\nset format y '%g'\n" + log_tics(plot);
  if (counts_few(plot)) text += "set xtics 1\n";
  return text;
}

// Points differ by shape as well as by colour, for grey print.
std::string style_text(int style, bool dashed) {
  constexpr int kPoints[] = {7, 5, 9, 11, 13, 6, 4, 8, 10, 12};
  if (dashed) return fmt::format("with lines linecolor {} dashtype 2 linewidth 1.5", style);
  return fmt::format("with linespoints linecolor {} pointtype {} pointsize 0.5 linewidth 2", style,
                     kPoints[static_cast<size_t>(style - 1) % std::size(kPoints)]);
}

struct CurveText {
  std::string data;      // blocks $PREFIXcurve0 …
  std::string names;     // variables PREFIXname0 …
  std::string commands;  // what follows `plot`
};

int style_of(const CurvePlot& plot, size_t curve) {
  return plot.curves[curve].style > 0 ? plot.curves[curve].style : static_cast<int>(curve) + 1;
}

CurveText curve_text(const CurvePlot& plot, const std::string& prefix, bool titles = true) {
  CurveText text;
  std::string lines;
  for (size_t i = 0; i < plot.curves.size(); ++i) {
    const Curve& curve = plot.curves[i];
    const size_t n = curve.x.size();
    const bool bars = !curve.error.empty();
    const bool band = !curve.low.empty() || !curve.high.empty();
    if (n == 0 || n != curve.y.size() || (bars && curve.error.size() != n)) {
      throw Error("plot \"{}\": curve \"{}\" has {} x, {} y and {} error values", plot.title,
                  curve.name, n, curve.y.size(), curve.error.size());
    }
    if (band && (bars || curve.low.size() != n || curve.high.size() != n)) {
      throw Error("plot \"{}\": curve \"{}\" has {} x, and a band of {} low and {} high values{}",
                  plot.title, curve.name, n, curve.low.size(), curve.high.size(),
                  bars ? " beside error bars" : "");
    }
    const std::string block = fmt::format("${}curve{}", prefix, i);
    text.data += block + " << EOD\n";
    for (size_t k = 0; k < n; ++k) {
      text.data += fmt::format("{} {}", number(curve.x[k]), number(curve.y[k]));
      if (bars) text.data += fmt::format(" {}", number(curve.error[k]));
      if (band) text.data += fmt::format(" {} {}", number(curve.low[k]), number(curve.high[k]));
      text.data += "\n";
    }
    text.data += "EOD\n";
    if (titles) text.names += fmt::format("{}name{} = {}\n", prefix, i, quoted(curve.name));
    const int style = style_of(plot, i);
    // Bands first, below every line.
    if (band)
      text.commands += fmt::format(
          "{}{} using 1:3:4 with filledcurves linecolor {} fillstyle transparent solid 0.2 "
          "noborder notitle",
          text.commands.empty() ? "" : ", ", block, style);
    lines += fmt::format(
        "{}{} using 1:2{} {}", lines.empty() ? "" : ", ", block,
        bars ? fmt::format(":3 with yerrorlines linecolor {} pointtype 7 pointsize 0.5 linewidth 2",
                           style)
             : fmt::format(" {}", style_text(style, curve.dashed)),
        titles ? fmt::format("title {}name{}", prefix, i) : "notitle");
  }
  text.commands += (text.commands.empty() ? "" : ", ") + lines;
  return text;
}

// Sizes of a picture with panels, in pixels of a terminal.
constexpr double kTitleHeight = 70;
constexpr double kAxisHeight = 62;
constexpr double kPanelHeight = 340;
constexpr double kPanelWidth = 460;

struct Legend {
  std::vector<std::string> names;
  std::vector<int> styles;
  size_t columns = 1;
  double height() const {
    return 22.0 * static_cast<double>((names.size() + columns - 1) / columns);
  }
};

Legend legend_of(const Panels& panels) {
  Legend legend;
  size_t longest = 1;
  for (const CurvePlot& plot : panels.plots) {
    for (size_t i = 0; i < plot.curves.size(); ++i) {
      const std::string& name = plot.curves[i].name;
      if (std::find(legend.names.begin(), legend.names.end(), name) != legend.names.end()) continue;
      legend.names.push_back(name);
      legend.styles.push_back(style_of(plot, i));
      longest = std::max(longest, name.size());
    }
  }
  // A character takes about 9 pixels, the sample of a line 60.
  const auto width = static_cast<size_t>(kPanelWidth) * panels.plots.size();
  legend.columns = std::clamp<size_t>(width / (9 * longest + 60), 1, legend.names.size());
  return legend;
}

double panels_height(const Legend& legend) {
  return kTitleHeight + kPanelHeight + kAxisHeight + legend.height();
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
  const CurveText curves = curve_text(plot, "");
  return line_colours() + axes(plot) +
         "set grid\nset key noenhanced outside right\nset datafile missing 'NaN'\n" + curves.data +
         curves.names + fmt::format("draw = \"plot {}\"\n", curves.commands);
}

std::string gnuplot_script(const Panels& panels) {
  if (panels.plots.empty()) throw Error("panels \"{}\": no plots", panels.title);
  const Legend legend = legend_of(panels);
  const double height = panels_height(legend);
  const double width = kPanelWidth * static_cast<double>(panels.plots.size());
  const auto place = [&](double left, double right, double bottom, double top) {
    return fmt::format(
        "set lmargin at screen {}; set rmargin at screen {}; set bmargin at screen {}; "
        "set tmargin at screen {}; ",
        left / width, right / width, bottom / height, 1 - top / height);
  };
  std::string text = line_colours() + "set datafile missing 'NaN'\n";
  text += fmt::format("heading = {}\n", quoted(panels.title));
  std::string draw = "set multiplot title heading noenhanced; unset key; ";
  for (size_t i = 0; i < panels.plots.size(); ++i) {
    const CurvePlot& plot = panels.plots[i];
    if (plot.curves.empty()) throw Error("panels \"{}\": {} has no curves", panels.title, i + 1);
    const CurveText curves = curve_text(plot, fmt::format("p{}_", i), false);
    text += curves.data;
    // As a block of lines: their quotes could not stand in the text of `draw`.
    text += fmt::format(
        "$axes{} << EOD\nunset logscale x\nunset logscale y\nset format y '% h'\nset xtics "
        "autofreq\nset ytics autofreq\nset yrange [*:*] extend\nset grid\nset border\n{}EOD\n",
        i, axes(plot));
    const double left = kPanelWidth * static_cast<double>(i);
    draw += place(left + 85, left + kPanelWidth - 20, kAxisHeight + legend.height(), kTitleHeight);
    draw += fmt::format("do for [k = 1:|$axes{0}|] {{ eval $axes{0}[k] }}; plot {1}; ", i,
                        curves.commands);
  }
  // The legend is a plot of its own, without axes, across the whole picture: a key beside a panel
  // would be no wider than that panel.
  draw += place(10, width - 10, 5, height - legend.height());
  draw +=
      "unset border; unset tics; unset grid; unset title; unset xlabel; unset ylabel; "
      "unset logscale y; ";
  draw += fmt::format(
      "set yrange [0:1]; set key noenhanced Left reverse center horizontal maxcols {}; plot ",
      legend.columns);
  for (size_t k = 0; k < legend.names.size(); ++k) {
    text += fmt::format("legend{} = {}\n", k, quoted(legend.names[k]));
    draw += fmt::format("{}NaN {} title legend{}", k > 0 ? ", " : "",
                        style_text(legend.styles[k], false), k);
  }
  return text + fmt::format("draw = \"{}; unset multiplot\"\n", draw);
}

bool write_plot(const HeatMap& map, const std::string& base, const std::string& gnuplot) {
  const int width = 220 + 80 * static_cast<int>(std::min<std::size_t>(map.columns.size(), 40));
  const int height = 150 + 45 * static_cast<int>(std::min<std::size_t>(map.rows.size(), 60));
  return draw(gnuplot_script(map), base, gnuplot, std::max(width, 520), std::max(height, 360));
}

bool write_plot(const CurvePlot& plot, const std::string& base, const std::string& gnuplot) {
  return draw(gnuplot_script(plot), base, gnuplot, 860, 480);
}

bool write_plot(const Panels& panels, const std::string& base, const std::string& gnuplot) {
  return draw(gnuplot_script(panels), base, gnuplot,
              static_cast<int>(kPanelWidth) * static_cast<int>(panels.plots.size()),
              static_cast<int>(panels_height(legend_of(panels))));
}

}  // namespace macgrad::experiments
