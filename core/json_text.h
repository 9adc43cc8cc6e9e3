// core/json_text.h
//
// JSON as text that is valid UTF-8 whatever its strings hold: paths and names come from outside,
// and may be any bytes. A byte that is no part of a UTF-8 character becomes "\xE9" in the text (a
// backslash, an x and two digits), so that what it was can be read.
//
// Threads: any.

#ifndef SLUICE_CORE_JSON_TEXT_H_
#define SLUICE_CORE_JSON_TEXT_H_

#include <string>
#include <string_view>

#include "nlohmann/json_fwd.hpp"

namespace sluice {

// `text` with every byte that is not part of a well-formed character replaced.
std::string ValidUtf8(std::string_view text);

// `json` written with `indent` spaces a level; -1: on one line.
std::string JsonText(nlohmann::ordered_json json, int indent);

}  // namespace sluice

#endif  // SLUICE_CORE_JSON_TEXT_H_
