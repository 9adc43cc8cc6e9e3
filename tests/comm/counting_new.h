// tests/comm/counting_new.h
//
// For a program that counts every `new`, on whatever thread: counting_new.cc replaces them.

#ifndef SLUICE_TESTS_COMM_COUNTING_NEW_H_
#define SLUICE_TESTS_COMM_COUNTING_NEW_H_

#include <atomic>
#include <cstdint>

namespace sluice {

extern std::atomic<int64_t> news;

}  // namespace sluice

#endif  // SLUICE_TESTS_COMM_COUNTING_NEW_H_
