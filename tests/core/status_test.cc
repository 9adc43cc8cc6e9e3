#include "core/status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <string>

namespace sluice {
namespace {

using testing::HasSubstr;

TEST(StatusTest, AnErrnoHasItsCodeItsWordsAndItsName) {
  struct Case {
    int value;
    absl::StatusCode code;
    const char* name;
  };
  const Case cases[] = {
      {ENOSPC, absl::StatusCode::kResourceExhausted, "(ENOSPC)"},
      {EDQUOT, absl::StatusCode::kResourceExhausted, "(EDQUOT)"},
      {ENOMEM, absl::StatusCode::kResourceExhausted, "(ENOMEM)"},
      {ENOENT, absl::StatusCode::kNotFound, "(ENOENT)"},
      {EACCES, absl::StatusCode::kPermissionDenied, "(EACCES)"},
      {EPERM, absl::StatusCode::kPermissionDenied, "(EPERM)"},
      {EINVAL, absl::StatusCode::kInvalidArgument, "(EINVAL)"},
      {EIO, absl::StatusCode::kDataLoss, "(EIO)"},
      {ENETDOWN, absl::StatusCode::kUnavailable, "(ENETDOWN)"},
  };
  for (const Case& c : cases) {
    const absl::Status status = ErrnoStatus(c.value, "reading x");
    EXPECT_EQ(c.code, status.code()) << c.name;
    EXPECT_THAT(std::string(Message(status)), HasSubstr(c.name));
    EXPECT_TRUE(Message(status).starts_with("reading x: ")) << status;
  }
  EXPECT_EQ("x: No space left on device (ENOSPC)", Message(ErrnoStatus(ENOSPC, "x")));
}

TEST(StatusTest, AnErrnoThatNobodyKnowsIsStillAnError) {
  const absl::Status status = ErrnoStatus(123456, "x");
  EXPECT_EQ(absl::StatusCode::kUnavailable, status.code());
  EXPECT_EQ("x: unknown error (errno 123456)", Message(status));
}

TEST(StatusTest, AnnotateKeepsTheCode) {
  const absl::Status status = Annotate(absl::DataLossError("lost"), "block 7");
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_EQ("block 7: lost", Message(status));
  EXPECT_TRUE(Annotate(absl::OkStatus(), "block 7").ok());
}

absl::StatusOr<int> Half(int n) {
  if (n % 2 != 0) return absl::InvalidArgumentError("odd");
  return n / 2;
}
absl::StatusOr<int> Quarter(int n) {
  SLUICE_ASSIGN_OR_RETURN(const int half, Half(n));
  SLUICE_ASSIGN_OR_RETURN(const int quarter, Half(half));
  SLUICE_RETURN_IF_ERROR(absl::OkStatus());
  return quarter;
}

TEST(StatusTest, TheMacrosPassErrorsOn) {
  EXPECT_EQ(3, *Quarter(12));
  EXPECT_EQ("odd", Message(Quarter(6).status()));
  EXPECT_EQ("odd", Message(Quarter(5).status()));
}

TEST(StatusDeathTest, AFailedCheckSaysWhatAndWhere) {
  EXPECT_DEATH(SLUICE_CHECK(1 + 1 == 3), "status_test.cc:[0-9]+: check failed: 1 \\+ 1 == 3\n");
  EXPECT_DEATH(SLUICE_CHECK_MSG(false, "as feared"), "check failed: false: as feared\n");
}

}  // namespace
}  // namespace sluice
