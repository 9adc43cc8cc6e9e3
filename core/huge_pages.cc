#include "core/huge_pages.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <string>

namespace sluice {

std::optional<Bytes> HugePageBytes(ConstMemoryView memory, std::istream& smaps) {
  const auto begin = reinterpret_cast<uintptr_t>(memory.data());
  const uintptr_t end = begin + memory.size();
  int64_t overlap = 0;  // of the mapping that the lines are of, with `memory`
  bool said = false;
  Bytes sum;
  for (std::string line; std::getline(smaps, line);) {
    uintptr_t from = 0, to = 0;
    int64_t kib = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2) {
      const uintptr_t first = std::max(begin, from);
      const uintptr_t last = std::min(end, to);
      overlap = first < last ? static_cast<int64_t>(last - first) : 0;
    } else if (overlap > 0 && std::sscanf(line.c_str(), "AnonHugePages: %" SCNd64, &kib) == 1) {
      said = true;
      sum += std::min(KiB(kib), Bytes(overlap));
    }
  }
  if (!said && !memory.empty()) return std::nullopt;
  return sum;
}

std::optional<Bytes> HugePageBytes(ConstMemoryView memory) {
  std::ifstream smaps("/proc/self/smaps");
  return HugePageBytes(memory, smaps);
}

}  // namespace sluice
