// tools/html.h
//
// Text for pages of HTML that are well-formed XML too: whatever a string holds, and numbers as
// people read them.
//
// Threads: any.

#ifndef SLUICE_TOOLS_HTML_H_
#define SLUICE_TOOLS_HTML_H_

#include <string>
#include <string_view>

namespace sluice::tools {

// `text` (UTF-8) as content or as the value of an attribute. What XML can't hold is written out:
// "\x01".
std::string Escaped(std::string_view text);

// A name from outside, which can't turn the text around it.
std::string NameHtml(std::string_view name);

std::string TimeText(double seconds);           // "1.31 s", "12.4 ms", "340 µs", "0 s"
std::string ShareText(double share);            // "13%", "0.4%", "0%"
std::string SizeText(double bytes);             // "1.2 GiB"
std::string RateText(double bytes_per_second);  // "4.6 GB/s"
double PercentOf(double share);                 // from 0 to 100; 0 of what is no number
std::string WidthText(double share);            // "12.34%", of CSS

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_HTML_H_
