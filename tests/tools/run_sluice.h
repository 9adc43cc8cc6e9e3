// tests/tools/run_sluice.h
//
// The `sluice` program, run as people run it.

#ifndef SLUICE_TESTS_TOOLS_RUN_SLUICE_H_
#define SLUICE_TESTS_TOOLS_RUN_SLUICE_H_

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>

#include "core/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "tests/nvme/temp_dir.h"

namespace sluice {

struct Result {
  int code = -1;
  std::string out;
  std::string err;
};

// Runs `sluice ARGUMENTS`, which the shell cuts at spaces.
inline Result Sluice(const std::string& arguments) {
  const TempDir directory;
  const std::string errors = directory.path() + "/stderr";
  const std::string command = fmt::format("{} {} 2>{}", SLUICE_PROGRAM, arguments, errors);
  FILE* pipe = popen(command.c_str(), "r");
  SLUICE_CHECK(pipe != nullptr);
  Result result;
  char buffer[4096];
  for (size_t n = 0; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;)
    result.out.append(buffer, n);
  const int status = pclose(pipe);
  if (WIFEXITED(status)) result.code = WEXITSTATUS(status);
  std::stringstream text;
  text << std::ifstream(errors).rdbuf();
  result.err = text.str();
  return result;
}

inline nlohmann::json Parsed(const Result& result) {
  nlohmann::json json = nlohmann::json::parse(result.out, nullptr, /*allow_exceptions=*/false);
  EXPECT_FALSE(json.is_discarded()) << result.out << result.err;
  return json;
}

}  // namespace sluice

#endif  // SLUICE_TESTS_TOOLS_RUN_SLUICE_H_
