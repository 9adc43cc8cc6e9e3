// tests/comm/fake_nccl/fake_nccl.h
//
// What the tests' own libnccl.so.2 exports beside NCCL's functions: streams in host memory, and
// faults. Ranks are threads or processes of one host; bytes go through shared memory, so that no
// rank ever touches another's.
//
// It behaves as NCCL does where that can be told apart. Communicators that don't block say
// ncclInProgress, and nothing reaches the stream before ncclCommGetAsyncError was asked often
// enough; calls before that are refused. Operations run behind others on their stream, when all
// ranks' streams have come to them, and wait for ever for one that doesn't come. Neither kinds nor
// sizes nor who has aborted is compared or told. An abort lets the streams run past what is theirs.

#ifndef SLUICE_TESTS_COMM_FAKE_NCCL_FAKE_NCCL_H_
#define SLUICE_TESTS_COMM_FAKE_NCCL_FAKE_NCCL_H_

#include <stddef.h>
#include <stdint.h>

#define SLUICE_FAKE_FUNCTIONS(F)                                                         \
  F(StreamMake, void*, ())                                                               \
  F(StreamFree, void, (void* stream)) /* drops what has not run */                       \
  F(StreamCopy, void, (void* stream, void* to, const void* from, size_t bytes))          \
  F(StreamMark, uint64_t, (void* stream))                                                \
  F(StreamPassed, int, (void* stream, uint64_t mark))                                    \
  /* Faults from now on, in place of those before and of SLUICE_FAKE_NCCL's, separated   \
     by commas: "ncclAllGather:3:error2" lets the third call from now on return 2,       \
     "...:late6" lets the operation hang and the communicator say 6 when asked,          \
     "...:never" lets what it begins never end; "version=20304" is what ncclGetVersion   \
     says, "deaths=seen" lets ranks whose peer's process is gone say ncclRemoteError. */ \
  F(SetFaults, void, (const char* faults))                                               \
  F(FaultsMet, int, ())                 /* how many faults have happened since */        \
  F(Calls, int, (const char* function)) /* and how many calls of a function */           \
  F(Communicators, int, ())             /* how many there are in this process */

struct FakeNccl {
#define SLUICE_FAKE_POINTER(name, result, arguments) result(*name) arguments = nullptr;
  SLUICE_FAKE_FUNCTIONS(SLUICE_FAKE_POINTER)
#undef SLUICE_FAKE_POINTER
};

#endif  // SLUICE_TESTS_COMM_FAKE_NCCL_FAKE_NCCL_H_
