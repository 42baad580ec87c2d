// Pictures by gnuplot, as SVG and PNG. The script is kept beside them with its data inside, so that
// a picture can be made again or restyled without the program. Pictures are extras: a missing or
// failing gnuplot is a warning on stderr, never the loss of a run.
#pragma once

#include <string>
#include <vector>

namespace macgrad::experiments {

/// A table of values as coloured cells with their numbers: Figure 4's lengths (rows) x features
/// (columns). NaN leaves a cell empty.
struct HeatMap {
  std::string title;
  std::string x_label;
  std::string y_label;
  std::string value_label;           // beside the colour scale
  std::vector<std::string> columns;  // from left to right
  std::vector<std::string> rows;     // from bottom to top
  std::vector<double> values;        // row-major (rows, columns)
};

struct Curve {
  std::string name;
  std::vector<double> x;
  std::vector<double> y;           // NaN interrupts the line
  std::vector<double> error = {};  // half length of the error bars; empty: none
  std::vector<double> low = {};    // band around the line, with high; empty: none
  std::vector<double> high = {};
  int style = 0;        // colour and point, from 1; 0: by its place among the curves
  bool dashed = false;  // without points
};

struct CurvePlot {
  std::string title;
  std::string x_label;
  std::string y_label;
  bool log_x = false;
  bool log_y = false;
  std::vector<Curve> curves;
};

/// Plots side by side under one title, with one legend below: the names of the curves, each once.
/// Curves of one name should have one style.
struct Panels {
  std::string title;
  std::vector<CurvePlot> plots;
};

/// Scripts for gnuplot 5; throw when a plot's sizes do not fit together. The terminal and the
/// output are left to the caller.
std::string gnuplot_script(const HeatMap& map);
std::string gnuplot_script(const CurvePlot& plot);
std::string gnuplot_script(const Panels& panels);

/// Writes `base`.gp, `base`.svg and `base`.png; returns whether the pictures were made. Earlier
/// pictures stay when they were not.
bool write_plot(const HeatMap& map, const std::string& base,
                const std::string& gnuplot = "gnuplot");
bool write_plot(const CurvePlot& plot, const std::string& base,
                const std::string& gnuplot = "gnuplot");
bool write_plot(const Panels& panels, const std::string& base,
                const std::string& gnuplot = "gnuplot");

}  // namespace macgrad::experiments
