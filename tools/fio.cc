#include "tools/fio.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <string_view>
#include <utility>

#include "core/clock.h"
#include "core/config.h"
#include "core/status.h"
#include "fmt/format.h"
#include "tools/json_file.h"

namespace sluice::tools {
namespace {

constexpr size_t kOutputMax = size_t{4} << 20;
constexpr double kPatience = 60;  // seconds beyond a job's own

// What a child printed to stdout (stderr too), and how it ended.
struct Output {
  std::string text;
  int status = 0;
};

// Runs `arguments`, the first of which is the program's path, in "/". Errors: of system calls;
// DeadlineExceeded after `seconds`, when the child has been killed.
absl::StatusOr<Output> RunChild(const std::vector<std::string>& arguments,
                                const std::vector<std::string>& environment, double seconds) {
  std::vector<char*> argv, envp;
  for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  for (const std::string& e : environment) envp.push_back(const_cast<char*>(e.c_str()));
  for (char** e = environ; *e != nullptr; ++e) envp.push_back(*e);
  envp.push_back(nullptr);
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus(errno, "a pipe to fio");
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    dup2(ends[1], STDOUT_FILENO);
    dup2(ends[1], STDERR_FILENO);
    if (chdir("/") == 0) execve(argv[0], argv.data(), envp.data());
    _exit(127);
  }
  close(ends[1]);
  if (child < 0) {
    close(ends[0]);
    return ErrnoStatus(errno, "starting fio");
  }
  const SteadyClock clock;
  const TimePoint begin = clock.Now();
  Output output;
  absl::Status status;
  for (;;) {
    const double left = seconds - Seconds(clock.Now() - begin);
    pollfd waiting = {.fd = ends[0], .events = POLLIN, .revents = 0};
    const int ready = left <= 0 ? 0 : poll(&waiting, 1, static_cast<int>(left * 1000) + 1);
    if (ready < 0 && errno == EINTR) continue;
    char buffer[1 << 14];
    const ssize_t n = ready > 0 ? read(ends[0], buffer, sizeof(buffer)) : -1;
    if (n < 0 || output.text.size() > kOutputMax) {
      status = absl::DeadlineExceededError(fmt::format("fio has not ended in {:.0f} s", seconds));
      kill(child, SIGKILL);
      break;
    }
    if (n == 0) break;
    output.text.append(buffer, static_cast<size_t>(n));
  }
  close(ends[0]);
  while (waitpid(child, &output.status, 0) < 0 && errno == EINTR) {
  }
  if (!status.ok()) return status;
  return output;
}

// Whether so much can be had of pages that are huge by themselves.
bool HasReservedPages(Bytes bytes) {
  std::ifstream meminfo("/proc/meminfo");
  int64_t free = 0, kib = 0;
  for (std::string line; std::getline(meminfo, line);) {
    if (line.starts_with("HugePages_Free:")) free = std::atoll(line.c_str() + 15);
    if (line.starts_with("Hugepagesize:")) kib = std::atoll(line.c_str() + 13);
  }
  return free * kib >= bytes.value() / 1024 + kib;
}

const char* RwOf(IoMode mode) {
  switch (mode) {
    case IoMode::kRead:
      return "read";
    case IoMode::kWrite:
      return "write";
    case IoMode::kMixed:
      return "readwrite";
  }
  return "";
}

}  // namespace

const char* Name(IoMode mode) {
  return mode == IoMode::kRead ? "read" : mode == IoMode::kWrite ? "write" : "mixed";
}

std::string FioShape::Text() const {
  return fmt::format("{}, {} x {}, {} a call{}", io_uring ? "io_uring" : "libaio",
                     FormatBytes(request), depth, batch, tuned ? ", huge pages" : "");
}

std::vector<FioShape> TunedFioShapes() {
  struct Size {
    Bytes request;
    int depth;
    int batch;
  };
  const Size sizes[] = {
      {MiB(1), 8, 2}, {KiB(512), 16, 2}, {KiB(256), 32, 2}, {MiB(1), 32, 32}, {MiB(4), 4, 1}};
  std::vector<FioShape> shapes;
  for (const bool io_uring : {true, false}) {
    for (const Size& s : sizes) {
      shapes.push_back({.io_uring = io_uring,
                        .request = s.request,
                        .depth = s.depth,
                        .batch = s.batch,
                        .tuned = true});
    }
  }
  return shapes;
}

std::optional<Fio> Fio::Find() {
  const std::string paths = GetEnv("PATH").value_or("");
  for (size_t begin = 0; begin <= paths.size();) {
    const size_t end = std::min(paths.find(':', begin), paths.size());
    const std::string program = paths.substr(begin, end - begin) + "/fio";
    begin = end + 1;
    if (program.front() != '/' || access(program.c_str(), X_OK) != 0) continue;
    const auto said = RunChild({program, "--version"}, {}, kPatience);
    if (!said.ok() || said->status != 0 || !said->text.starts_with("fio-")) continue;
    return Fio(program, said->text.substr(0, said->text.find('\n')));
  }
  return {};
}

absl::StatusOr<FioResult> Fio::Run(const FioShape& shape, IoMode mode, const DirectFile& file,
                                   Bytes offset, Bytes end, double seconds) const {
  std::vector<std::string> arguments = {
      program_, "--name=sluice", "--thread=1", "--output-format=json", "--eta=never",
      // The file has no name; it is there already, and neither made nor removed.
      fmt::format("--filename=/proc/{}/fd/{}", getpid(), file.fd()), "--allow_file_create=0",
      "--fallocate=none", fmt::format("--direct={}", file.direct() ? 1 : 0),
      fmt::format("--offset={}", offset.value()), fmt::format("--size={}", (end - offset).value()),
      "--time_based=1", fmt::format("--runtime={:.0f}ms", seconds * 1000),
      fmt::format("--rw={}", RwOf(mode)),
      fmt::format("--ioengine={}", shape.io_uring ? "io_uring" : "libaio"),
      fmt::format("--bs={}", shape.request.value()), fmt::format("--iodepth={}", shape.depth),
      fmt::format("--iodepth_batch={}", shape.batch)};
  std::vector<std::string> environment;
  if (shape.tuned) {
    arguments.emplace_back("--scramble_buffers=0");
    if (shape.io_uring) {
      arguments.emplace_back("--registerfiles=1");
      arguments.emplace_back("--fixedbufs=1");
    }
    if (HasReservedPages(shape.request * shape.depth)) {
      arguments.emplace_back("--iomem=mmaphuge");
    } else {  // transparent ones, for the C library's large blocks
      environment.emplace_back("GLIBC_TUNABLES=glibc.malloc.hugetlb=1");
    }
  }
  SLUICE_ASSIGN_OR_RETURN(const Output output,
                          RunChild(arguments, environment, seconds + kPatience));
  if (output.status != 0) {
    return absl::UnavailableError(fmt::format("fio ({}) failed: {}", shape.Text(),
                                              output.text.substr(0, output.text.find('\n'))));
  }
  return ParseFioReport(output.text);
}

absl::StatusOr<FioResult> ParseFioReport(const std::string& text) {
  const size_t begin = text.find('{');  // warnings come before
  SLUICE_ASSIGN_OR_RETURN(
      const Json report,
      ParseObject(begin == std::string::npos ? text : text.substr(begin), "fio's report"));
  const auto number = [&report](const char* pointer) -> double {
    const Json::json_pointer at(pointer);
    const Json* found = report.contains(at) ? &report.at(at) : nullptr;
    return found != nullptr && found->is_number() ? found->get<double>() : -1;
  };
  const double error = number("/jobs/0/error");
  double bytes = 0;
  double rate = 0;
  for (const char* way : {"read", "write"}) {
    bytes += number(fmt::format("/jobs/0/{}/io_bytes", way).c_str());
    rate += number(fmt::format("/jobs/0/{}/bw_bytes", way).c_str());
  }
  const double user = number("/jobs/0/usr_cpu");
  const double system = number("/jobs/0/sys_cpu");
  const double milliseconds = number("/jobs/0/job_runtime");
  if (error != 0 || bytes <= 0 || rate <= 0 || user < 0 || system < 0 || milliseconds < 0)
    return absl::InvalidArgumentError("fio's report is not of a job that moved bytes");
  return FioResult{.bytes_per_second = rate,
                   .cpu_seconds_per_byte = (user + system) / 100 * milliseconds / 1000 / bytes};
}

}  // namespace sluice::tools
