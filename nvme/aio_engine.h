// nvme/aio_engine.h
//
// The libaio engine: Linux's older asynchronous interface, for where io_uring is switched off. It
// is as asynchronous as the file lets it be: direct I/O is, while plain I/O through the page cache
// is carried out inside Submit.

#ifndef SLUICE_NVME_AIO_ENGINE_H_
#define SLUICE_NVME_AIO_ENGINE_H_

#include <memory>
#include <span>
#include <string>

#include "nvme/io_engine.h"

namespace sluice {

// `why` is said in the description. Errors: Unavailable, PermissionDenied or ResourceExhausted if
// the kernel has no context or eventfd for us, with what would change that.
absl::StatusOr<std::unique_ptr<IoEngine>> MakeAioEngine(std::span<const DirectFile> files,
                                                        const IoEngine::Limits& limits,
                                                        Clock* clock, std::string why);

}  // namespace sluice

#endif  // SLUICE_NVME_AIO_ENGINE_H_
