// inspect.html: the record of a step in a page that any browser opens, without server or network.
// Its look and behaviour are in page/, its data's format in page/README.md.
#pragma once

#include <string>

#include "macgrad/experiments/common/json_fwd.h"

namespace macgrad::experiments {

/// "format" of a record that this program writes and the page reads.
inline constexpr char kRecordFormat[] = "macgrad-inspect-1";

/// The page of a record. Whatever strings the record holds stay data: nothing in them can end the
/// element that holds it.
std::string page_of(const Json& record);

/// The formula of each op that models are made of, by its name, for the page.
Json op_formulas();

/// `inspect page RECORD`: the page of a graph.json, made anew.
int page_command(int argc, const char* const* argv);

}  // namespace macgrad::experiments
