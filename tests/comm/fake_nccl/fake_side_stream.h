// tests/comm/fake_nccl/fake_side_stream.h
//
// The tests' own libnccl.so.2 as they open it, and a SideStream that is one of its streams.
//
// Threads: as SideStream.

#ifndef SLUICE_TESTS_COMM_FAKE_NCCL_FAKE_SIDE_STREAM_H_
#define SLUICE_TESTS_COMM_FAKE_NCCL_FAKE_SIDE_STREAM_H_

#include <memory>
#include <string>

#include "core/side_stream.h"
#include "tests/comm/fake_nccl/fake_nccl.h"

namespace sluice {

std::string FakeNcclPath();
const FakeNccl& OpenFakeNccl();

// `fails_at`: so many of its calls go well, then all fail; none if it is negative.
std::unique_ptr<SideStream> MakeFakeSideStream(Bytes staging, int fails_at = -1);

}  // namespace sluice

#endif  // SLUICE_TESTS_COMM_FAKE_NCCL_FAKE_SIDE_STREAM_H_
