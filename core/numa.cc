#include "core/numa.h"

#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <iterator>
#include <memory>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

constexpr int kNumbersMax = 1 << 14;  // more than a kernel counts of cores or nodes
constexpr int kParentsMax = 6;        // of a drive's directory, up to the device on the bus
constexpr int kPagesLookedAt = 512;
constexpr size_t kPage = 4096;

std::optional<int> NumberIn(std::string_view text) {
  int number = -1;
  std::from_chars(text.data(), text.data() + text.size(), number);
  if (number < 0) return std::nullopt;  // the kernel's -1: it doesn't know
  return number;
}

std::optional<int> NumberAt(const FileReader& read, const std::string& path) {
  const absl::StatusOr<std::string> text = read(path);
  return text.ok() ? NumberIn(*text) : std::nullopt;
}

std::vector<int> ListAt(const FileReader& read, const std::string& path) {
  const absl::StatusOr<std::string> text = read(path);
  return text.ok() ? ParseNumberList(*text) : std::vector<int>();
}

std::vector<int> Common(const std::vector<int>& a, const std::vector<int>& b) {
  std::vector<int> both;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
  return both;
}

// The one node of the drives, if they agree.
std::optional<int> NodeOfAll(const std::vector<std::optional<int>>& drives) {
  std::optional<int> node;
  for (const std::optional<int>& drive : drives) {
    if (!drive || (node && *node != *drive)) return std::nullopt;
    node = drive;
  }
  return node;
}

struct CpuMask {
  CpuMask() : set(CPU_ALLOC(kNumbersMax), [](cpu_set_t* s) { CPU_FREE(s); }) {
    CPU_ZERO_S(kSize, set.get());
  }
  static constexpr size_t kSize = CPU_ALLOC_SIZE(kNumbersMax);
  const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> set;
};

// The error number, or 0.
int RunOn(const std::vector<int>& cores) {
  const CpuMask mask;
  for (const int core : cores) CPU_SET_S(static_cast<size_t>(core), CpuMask::kSize, mask.set.get());
  return sched_setaffinity(0, CpuMask::kSize, mask.set.get()) == 0 ? 0 : errno;
}

}  // namespace

std::vector<int> ParseNumberList(std::string_view text) {
  std::vector<int> numbers;
  const char* at = text.data();
  const char* const end = at + text.find_last_not_of(" \n") + 1;  // npos + 1 is 0
  while (at < end) {
    int first = -1;
    auto read = std::from_chars(at, end, first);
    if (read.ec != std::errc()) return {};
    int last = first;
    if (read.ptr < end && *read.ptr == '-') read = std::from_chars(read.ptr + 1, end, last);
    if (read.ec != std::errc() || first < 0 || last < first || last >= kNumbersMax) return {};
    for (int n = first; n <= last; ++n) numbers.push_back(n);
    if (read.ptr < end && *read.ptr++ != ',') return {};
    at = read.ptr;
  }
  std::sort(numbers.begin(), numbers.end());
  numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
  return numbers;
}

std::vector<NumaNode> ReadNumaNodes(const FileReader& read) {
  const std::string below = "/sys/devices/system/node";
  std::vector<NumaNode> nodes;
  for (const int number : ListAt(read, below + "/has_memory"))
    nodes.push_back({number, ListAt(read, fmt::format("{}/node{}/cpulist", below, number))});
  return nodes;
}

std::optional<int> NodeOfPciDevice(const FileReader& read, std::string_view address) {
  std::string lower(address);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return NumberAt(read, fmt::format("/sys/bus/pci/devices/{}/numa_node", lower));
}

std::optional<int> NodeOfBlockDevice(const FileReader& read, unsigned major, unsigned minor) {
  std::string directory = fmt::format("/sys/dev/block/{}:{}", major, minor);
  for (int i = 0; i < kParentsMax; ++i, directory += "/..") {
    if (const absl::StatusOr<std::string> text = read(directory + "/numa_node"); text.ok())
      return NumberIn(*text);
  }
  return std::nullopt;
}

NumaBinding ChooseNumaBinding(const std::vector<NumaNode>& nodes, const NumaWishes& wishes) {
  if (nodes.size() < 2) return {.cores = wishes.allowed, .reason = "1 NUMA node: nothing to bind"};
  const auto cores_of = [&](int number) {
    const auto node = std::find_if(nodes.begin(), nodes.end(),
                                   [number](const NumaNode& n) { return n.number == number; });
    return node == nodes.end() ? std::vector<int>() : Common(node->cores, wishes.allowed);
  };
  std::string unusable;
  const auto bound = [&](std::optional<int> number, std::string_view whose) {
    NumaBinding binding;
    if (!number) return binding;
    binding.cores = cores_of(*number);
    if (binding.cores.empty()) {
      unusable += fmt::format("; node {}, {}, has no allowed core", *number, whose);
      return binding;
    }
    binding.node = number;
    binding.reason = fmt::format("{} NUMA nodes; bound to node {}, {}: threads to its {} cores",
                                 nodes.size(), *number, whose, binding.cores.size());
    return binding;
  };
  if (NumaBinding gpu = bound(wishes.gpu, "the GPU's"); gpu.node) return gpu;
  if (NumaBinding drives = bound(NodeOfAll(wishes.drives), "the drives'"); drives.node)
    return drives;
  for (const NumaNode& node : nodes) {
    if (cores_of(node.number).size() != wishes.allowed.size() || wishes.allowed.empty()) continue;
    NumaBinding cores = bound(node.number, "that of all allowed cores");
    cores.reason += unusable;
    return cores;
  }
  return {.cores = wishes.allowed,
          .reason = fmt::format("{} NUMA nodes: nothing is bound, since neither a GPU nor the "
                                "drives nor the allowed cores say to which{}",
                                nodes.size(), unusable)};
}

std::vector<int> CoresOfThread() {
  const CpuMask mask;
  std::vector<int> cores;
  if (sched_getaffinity(0, CpuMask::kSize, mask.set.get()) != 0) return cores;
  for (int n = 0; n < kNumbersMax; ++n)
    if (CPU_ISSET_S(static_cast<size_t>(n), CpuMask::kSize, mask.set.get())) cores.push_back(n);
  return cores;
}

ScopedNumaBinding::ScopedNumaBinding(const NumaBinding& binding) {
  std::vector<int> now = CoresOfThread();
  if (!binding.cores.empty() && !now.empty() && now != binding.cores) {
    if (const int error = RunOn(binding.cores); error == 0) {
      cores_before_ = std::move(now);
    } else {
      refused_ = std::string(ErrnoStatus(error, "binding threads").message());
    }
  }
  if (!binding.node || static_cast<size_t>(*binding.node) >= kMaskWords * 8 * sizeof(long)) return;
  unsigned long wanted[kMaskWords] = {};
  const auto bit = static_cast<size_t>(*binding.node);
  wanted[bit / (8 * sizeof(long))] |= 1ul << bit % (8 * sizeof(long));
  constexpr unsigned long kBits = kMaskWords * 8 * sizeof(long);
  const bool known =
      syscall(SYS_get_mempolicy, &policy_before_, policy_nodes_before_, kBits, nullptr, 0) == 0;
  if (known && policy_before_ != MPOL_DEFAULT && policy_before_ != MPOL_LOCAL) {
    refused_ += std::string(refused_.empty() ? "" : "; ") +
                "this process has a memory policy of its own, which stays";
    return;
  }
  policy_changed_ = known && syscall(SYS_set_mempolicy, MPOL_PREFERRED, wanted, kBits) == 0;
  if (!policy_changed_) {  // who touches memory first is on the node's cores nevertheless
    refused_ += std::string(refused_.empty() ? "" : "; ") +
                std::string(ErrnoStatus(errno, "setting the memory policy").message());
  }
}

ScopedNumaBinding::~ScopedNumaBinding() {
  if (policy_changed_) {
    const bool named = policy_before_ != MPOL_DEFAULT && policy_before_ != MPOL_LOCAL;
    syscall(SYS_set_mempolicy, policy_before_, named ? policy_nodes_before_ : nullptr,
            named ? kMaskWords * 8 * sizeof(long) : 0);
  }
  if (!cores_before_.empty()) RunOn(cores_before_);
}

std::optional<double> ShareOnNode(ConstMemoryView memory, int node) {
  const size_t pages = memory.size() / kPage;
  const size_t count = std::min<size_t>(pages, kPagesLookedAt);
  if (count == 0) return std::nullopt;
  std::vector<const void*> at(count);
  std::vector<int> nodes(count, -1);
  for (size_t i = 0; i < count; ++i) at[i] = memory.data() + pages * i / count * kPage;
  if (syscall(SYS_move_pages, 0, count, at.data(), nullptr, nodes.data(), 0) != 0)
    return std::nullopt;
  return static_cast<double>(std::count(nodes.begin(), nodes.end(), node)) /
         static_cast<double>(count);
}

}  // namespace sluice
