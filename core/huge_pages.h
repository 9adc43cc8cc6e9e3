// core/huge_pages.h
//
// How much of some memory lies on huge pages: what the kernel says, not what it was asked for.
//
// Threads: any. The kernel looks at every small page of the process: some 10 ms a GiB of them. For
// reports.

#ifndef SLUICE_CORE_HUGE_PAGES_H_
#define SLUICE_CORE_HUGE_PAGES_H_

#include <istream>
#include <optional>

#include "core/types.h"

namespace sluice {

// Of `memory`, now. A mapping that the kernel has joined with its neighbours counts up to what of
// it is `memory`. None: the kernel doesn't say.
std::optional<Bytes> HugePageBytes(ConstMemoryView memory);

// The same, from text as /proc/self/smaps has it.
std::optional<Bytes> HugePageBytes(ConstMemoryView memory, std::istream& smaps);

}  // namespace sluice

#endif  // SLUICE_CORE_HUGE_PAGES_H_
