// tools/gpus_page.h
//
// What `sluice plan --gpus` prints for people: a page of 100 columns. Tiers are called as a
// ds_config.json does, bytes as those who publish such tables do, in powers of 1000.

#ifndef SLUICE_TOOLS_GPUS_PAGE_H_
#define SLUICE_TOOLS_GPUS_PAGE_H_

#include <string>

#include "tools/gpus_report.h"

namespace sluice::tools {

std::string GpusPage(const GpusReport& report);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_GPUS_PAGE_H_
