/* offload/sluice.h
 *
 * The C ABI of Sluice: what a training framework needs to keep a model's parameters, gradients and
 * optimizer states on three tiers (HBM, pinned RAM, NVMe) and have them moved just in time.
 *
 * The life of a runtime: describe the model (units and their tensors), create the runtime, write
 * every tensor's initial master, then for each micro-batch begin an iteration; acquire a unit
 * before its layer computes and release it after, in forward and again in backward; hand over
 * gradients; end the iteration; and at the accumulation boundary call sluice_step. Updates go on
 * under the next forward; acquire waits for them.
 *
 * Handles are numbers, never pointers: a stale, foreign or invented one, and a number out of
 * range, named, is SLUICE_INVALID_ARGUMENT. They are their process's: in a forked child every call
 * on its parent's is SLUICE_FAILED_PRECONDITION and destroys nothing; its own work.
 *
 * Threads: any, for every function. Calls on one runtime take effect in the order they are made.
 * Waiting: only sluice_wait, at most 100 ms a call, and sluice_runtime_create, for ranks. What
 * takes longer gives a ticket. Errors: every function returns a status, sluice_last_error() the
 * words. A call for which memory runs out is SLUICE_RESOURCE_EXHAUSTED (sluice_wait:
 * SLUICE_PENDING) and has done nothing; those that write JSON may end the process. After an error
 * in a deferred update the runtime has failed: what reads or advances it returns that first error.
 * Structs: set struct_size to sizeof the struct. Fields are only appended, at multiples of 8: an
 * older caller's are shorter, and what they lack has its default. SLUICE_..._INIT sets the
 * defaults. Nothing is thrown. */

#ifndef SLUICE_OFFLOAD_SLUICE_H_
#define SLUICE_OFFLOAD_SLUICE_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SLUICE_ABI_VERSION 2
#define SLUICE_API __attribute__((visibility("default")))

typedef enum sluice_status {
  SLUICE_OK = 0,
  SLUICE_PENDING = 1, /* sluice_wait only: not finished yet, call again */
  SLUICE_INVALID_ARGUMENT = 2,
  SLUICE_FAILED_PRECONDITION = 3,
  SLUICE_RESOURCE_EXHAUSTED = 4,
  SLUICE_NOT_FOUND = 5,
  SLUICE_DATA_LOSS = 6,
  SLUICE_UNAVAILABLE = 7,
  SLUICE_PERMISSION_DENIED = 8,
  SLUICE_INTERNAL = 9,
  SLUICE_NOT_OPEN = 10 /* sluice_wait only: the ticket was waited for already, or never given */
} sluice_status;

typedef uint64_t sluice_model;   /* a description of a model; 0 is never valid */
typedef uint64_t sluice_runtime; /* a running engine */
typedef uint64_t sluice_ticket;  /* an operation under way */
/* SLUICE_BYTES: raw bytes, of a unit that sluice_model_set_unit_types says so of. */
typedef enum sluice_dtype {
  SLUICE_F32 = 0,
  SLUICE_BF16 = 1,
  SLUICE_F16 = 2,
  SLUICE_BYTES = 3
} sluice_dtype;
typedef enum sluice_tier { SLUICE_HBM = 0, SLUICE_PINNED = 1, SLUICE_NVME = 2 } sluice_tier;

SLUICE_API uint32_t sluice_abi_version(void);
SLUICE_API const char* sluice_version(void); /* "0.1.0"; static */
/* Of the last call that failed on this thread; valid until the next call on it. */
SLUICE_API const char* sluice_last_error(void);

/* ---- The model ---- */

/* A unit is what is fetched and released together, usually one layer. A tensor is one parameter of
 * `elements` > 0 values, of any shape. `group` chooses the hyperparameters in sluice_step. Names
 * are for messages. Tied weights are one tensor of one unit. */
SLUICE_API sluice_status sluice_model_create(sluice_model* model);
SLUICE_API sluice_status sluice_model_add_unit(sluice_model model, const char* name,
                                               uint32_t* unit);
/* The unit's parameters live in HBM for good: of a unit that is held while others are acquired and
 * released, such as what a block of layers has itself, beside its layers. */
SLUICE_API sluice_status sluice_model_keep_in_hbm(sluice_model model, uint32_t unit);
SLUICE_API sluice_status sluice_model_add_tensor(sluice_model model, uint32_t unit,
                                                 const char* name, int64_t elements, uint32_t group,
                                                 uint32_t* tensor);

/* What of a tensor is kept on the tiers. PARAM: it is frozen: a compute copy and nothing else; no
 * states, no gradient, never written after it was loaded. STATES: its parameter stays in the
 * caller's memory, where sluice_step reads and writes it; all tensors of a unit or none. The unit
 * has no view then, and acquiring it waits for its update. MOMENTS: as STATES, but the parameter is
 * always fp32, and it is the master: 8 bytes an element are kept instead of 12. Writing either
 * moment begins both, at zero where nothing was written; that comes before the first step. Call
 * before the runtime is created. */
typedef enum sluice_keep {
  SLUICE_KEEP_ALL = 0, /* the default */
  SLUICE_KEEP_PARAM = 1,
  SLUICE_KEEP_STATES = 2, /* STATES and MOMENTS: "lent" below */
  SLUICE_KEEP_MOMENTS = 3
} sluice_keep;
SLUICE_API sluice_status sluice_model_set_keep(sluice_model model, uint32_t tensor, int32_t keep);
/* The types of this unit's compute copies and gradients, instead of the options'. Call before the
 * runtime is created. SLUICE_BYTES as param_dtype (grad_dtype is then ignored): the elements are
 * bytes, such as a quantized weight, which are never converted. All tensors of the unit must be
 * SLUICE_KEEP_PARAM, and are read and written as SLUICE_BYTES, SLUICE_PARAM and SLUICE_MASTER
 * alike. Every bit survives, as in a frozen tensor that is read and written in its own type. */
SLUICE_API sluice_status sluice_model_set_unit_types(sluice_model model, uint32_t unit,
                                                     int32_t param_dtype, int32_t grad_dtype);
SLUICE_API sluice_status sluice_model_destroy(sluice_model model);

/* ---- The runtime ---- */

typedef enum sluice_io_engine_kind {
  SLUICE_IO_AUTO = 0,
  SLUICE_IO_URING = 1,
  SLUICE_IO_THREADS = 2,
  SLUICE_IO_LIBAIO = 3
} sluice_io_engine_kind;

/* AUTO: CUDA if this build has it and there is a driver and a GPU, else the host, whose "HBM" is
 * RAM. The plan, the report and the doctor say which, and why. */
typedef enum sluice_device_kind {
  SLUICE_DEVICE_AUTO = 0,
  SLUICE_DEVICE_HOST = 1,
  SLUICE_DEVICE_CUDA = 2
} sluice_device_kind;

/* -1 (or 0 where marked): chosen from the machine, its cgroup and the model; see the report. */
typedef struct sluice_options {
  size_t struct_size;
  /* Of compute copies, and of gradients: in units without sluice_model_set_unit_types. */
  int32_t param_dtype, grad_dtype;
  int64_t hbm_bytes, pinned_bytes; /* budgets; -1 chosen */
  int64_t nvme_bytes;              /* likewise; -1: as needed */
  const char* const* nvme_paths;   /* directories, one per drive; NULL if nothing may go to NVMe */
  uint32_t nvme_path_count;
  int32_t lowest_param_tier; /* sluice_tier: how far down parameters may go */
  /* And states. SLUICE_HBM on CUDA: states, gradients and parameters all live there; else those of
   * the first units for which HBM has room beside all parameters. On the host device, and where
   * tensors are lent, it is SLUICE_PINNED. */
  int32_t lowest_state_tier;
  int32_t io_engine;      /* sluice_io_engine_kind */
  uint32_t io_depth;      /* transfers in the kernel at a time; 0 chosen */
  uint32_t io_batch;      /* transfers submitted per call at most; 0 chosen */
  int32_t workers;        /* threads that update states; 0: one less than cores */
  int64_t chunk_elements; /* multiple of 4096; 0 chosen */
  /* Units of at most so many elements stay in HBM for good; -1 chosen. */
  int64_t resident_elements_max;
  double static_loss_scale; /* 0: dynamic, with the next five; default 1 */
  int32_t initial_scale_power, hysteresis;
  int32_t consecutive_hysteresis; /* 0 or 1 */
  int64_t loss_scale_window;
  double min_loss_scale;
  /* Host device: modelled speed of the link, per direction; 0: as fast as memory. */
  double link_bytes_per_second;
  /* 1; 0: debug aid, every movement waits for the one before and nothing is read ahead. */
  int32_t overlap;
  uint64_t trace_spans_max;     /* room for so many spans of sluice_trace_write; 0 records none */
  int32_t device, device_index; /* sluice_device_kind; of the GPU */
  /* NULL: the device makes the HBM tier. Else a contiguous DLManagedTensor there, of at least
   * sluice_plan's planned_bytes.hbm, used by no stream: the runtime's, until its last view dies. */
  void* hbm_memory;
  /* Which of several ranks this is, and of how many (0 or 1: alone). All have the same model and
   * options, and create, read, write the same values, clear gradients and step in one order. They
   * get the mean of their gradients, and divide hosts. ZeRO shares: 0 none, 1, 2 states, 3 all. */
  uint32_t rank, ranks;
  int32_t zero_stage;
  int32_t rank_timeout_ms; /* how long another rank may keep this one waiting; 0: 10 minutes */
  /* sluice_comm.h: groups, all of host memory, of agreement, gradients, gathers and, which GPUs
   * (they need NCCL too) and a modelled link want, values. Closed if creation fails. */
  const struct sluice_comm_table* comm;
  uint32_t comm_groups; /* 3 or 4; 0: 3 */
  int64_t reduction;    /* 0: in the order of ranks, in fp32; 1: the library's own, in grad_dtype */
  const int32_t* give_up; /* may be NULL; not 0: sluice_runtime_create waits no more for ranks */
  const char* tuned;      /* a file of `sluice tune`, for what of I/O is 0 or AUTO above, or NULL */
} sluice_options;

#define SLUICE_OPTIONS_INIT                                                                      \
  {                                                                                              \
    sizeof(sluice_options), SLUICE_F32, SLUICE_F32, -1, -1, -1, 0, 0, SLUICE_NVME, SLUICE_NVME,  \
        SLUICE_IO_AUTO, 0, 0, 0, 0, -1, 1.0, 16, 2, 0, 1000, 1.0, 0.0, 1, 0, SLUICE_DEVICE_AUTO, \
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0                                                          \
  }

/* What would be placed where, as JSON, without creating anything but a file in each path, to try
 * it, which is gone at once. Errors: SLUICE_RESOURCE_EXHAUSTED if a budget can't work, naming the
 * smallest that would. All functions that write JSON write at most `capacity` bytes including the
 * terminating 0; *needed is what the whole takes. `json` may be NULL if capacity is 0. */
SLUICE_API sluice_status sluice_plan(sluice_model model, const sluice_options* options, char* json,
                                     size_t capacity, size_t* needed);

/* Takes all memory and disk space. The model may be destroyed afterwards. Errors: as sluice_plan;
 * those of the paths; SLUICE_RESOURCE_EXHAUSTED if the machine or its cgroup has less RAM than the
 * plan takes, which is looked at before anything is taken. */
SLUICE_API sluice_status sluice_runtime_create(sluice_model model, const sluice_options* options,
                                               sluice_runtime* runtime);

/* Drains updates for at most 3 seconds, then abandons what is left, and gives everything back, but
 * device memory when the last view of it was deleted. Returns when calls of other threads on it
 * have ended, and nothing of the caller's is used any more; the handle is gone in any case. If a
 * drive, a stream or a worker hangs: SLUICE_UNAVAILABLE after 4 seconds (12 if a call into a driver
 * does, and 1 more for each 4 GB of RAM); sluice_last_error names it. What it may use is kept until
 * it or the process ends; memory of tickets not done, or lent, may still be in use. */
SLUICE_API sluice_status sluice_runtime_destroy(sluice_runtime runtime);

/* Waits for `ticket`, at most timeout_ms (cut to 100). SLUICE_PENDING: not yet. SLUICE_NOT_OPEN: it
 * is used up, or never was one. Any other result is the operation's, and the ticket is used up. */
SLUICE_API sluice_status sluice_wait(sluice_runtime runtime, sluice_ticket ticket,
                                     int32_t timeout_ms);

/* ---- Iterations and residency ---- */

#define SLUICE_ITERATION_BOUNDARY 1u /* sluice_step follows: gradients are final on arrival */

/* `key` tells traces apart (0..15): give training, evaluation and accumulation micro-steps
 * different ones. The order in which units are acquired is learned the first time and followed from
 * then on; departures are served on demand. */
SLUICE_API sluice_status sluice_iteration_begin(sluice_runtime runtime, uint32_t key,
                                                uint32_t flags);
SLUICE_API sluice_status sluice_iteration_end(sluice_runtime runtime);

/* Streams: on CUDA, `stream` is the cudaStream_t (NULL: the legacy default stream; never
 * cudaStreamPerThread) on which the caller computes; elsewhere it is ignored. It must live until
 * the tickets of what was acquired on it are done, and as long as views of these units. While it
 * is captured into a graph every call fails with SLUICE_FAILED_PRECONDITION.
 *
 * Asks for `unit` in HBM. When the ticket is done, the unit is there and up to date for what is put
 * on `stream` from then on, or ordered after that; elsewhere than on CUDA for whoever looks. It
 * stays until released. The copy may still be under way: the stream waits for it, and if it fails
 * the runtime fails, before any step. Acquisitions count, also those on several streams, each of
 * which may use the unit then. Errors of the ticket: SLUICE_RESOURCE_EXHAUSTED if everything in HBM
 * is held, so that waiting can't help; SLUICE_FAILED_PRECONDITION if a tensor of the unit was never
 * written.
 *
 * After release the memory stays as it is until what `stream`, and others that have acquired it and
 * not released it, hold at that time has run. */
SLUICE_API sluice_status sluice_acquire(sluice_runtime runtime, uint32_t unit, void* stream,
                                        sluice_ticket* ticket);
SLUICE_API sluice_status sluice_release(sluice_runtime runtime, uint32_t unit, void* stream);

/* An acquired unit's memory as a one-dimensional DLPack tensor (DLManagedTensor*, DLPack 0.6
 * layout) of the unit's param_dtype, bytes as uint8. The memory is not reused before the deleter
 * was called, whoever calls it on whatever thread, and every stream that has acquired the unit has
 * run what it then holds. */
SLUICE_API sluice_status sluice_unit_view(sluice_runtime runtime, uint32_t unit, void** dlpack);

typedef struct sluice_tensor_info {
  size_t struct_size;
  uint32_t unit;
  int64_t elements;
  int64_t offset; /* of the tensor in its unit's view, in elements */
  int64_t step;   /* updates it has had, as of the last step whose ticket is done */
  /* Of its parameter, what this update has yet to write, or, if sluice_drain failed, never will. */
  int64_t unwritten;
} sluice_tensor_info;
SLUICE_API sluice_status sluice_tensor_query(sluice_runtime runtime, uint32_t tensor,
                                             sluice_tensor_info* info);
/* Sets the number of updates a tensor has had (for loading an optimizer's state). */
SLUICE_API sluice_status sluice_tensor_set_step(sluice_runtime runtime, uint32_t tensor,
                                                int64_t step);

/* ---- Gradients and the step ---- */

typedef struct sluice_gradient {
  const void* data; /* `elements` values of the unit's grad_dtype, in device or host memory */
  int64_t elements;
  uint32_t tensor;
  uint32_t lent; /* 0 or 1 */
} sluice_gradient;

/* Adds each to its tensor's gradient (the first since the last step sets it); no tensor twice. If
 * one is refused, none is taken. They are read when `stream` has run what it holds now, and must
 * stay as they are until the ticket is done.
 *
 * One that is lent is not copied, but used where it lies, in host memory and complete now: the only
 * gradient of a tensor whose parameter is. It must stay as it is until the tensor's update has
 * ended (sluice_acquire of its unit, sluice_drain); where there is none, until a sluice_drain after
 * the step or after it was forgotten. Errors of the ticket: SLUICE_FAILED_PRECONDITION for another
 * tensor, or one that has a gradient, which sluice_read and sluice_write answer too while it is
 * lent. */
SLUICE_API sluice_status sluice_grads(sluice_runtime runtime, const sluice_gradient* gradients,
                                      uint64_t count, void* stream, sluice_ticket* ticket);
/* The same of one that is not lent. */
SLUICE_API sluice_status sluice_grad(sluice_runtime runtime, uint32_t tensor, const void* data,
                                     int64_t elements, void* stream, sluice_ticket* ticket);
/* Forgets what was handed over: all, or of one tensor (SLUICE_FAILED_PRECONDITION if frozen). */
SLUICE_API sluice_status sluice_zero_grad(sluice_runtime runtime);
SLUICE_API sluice_status sluice_grad_clear(sluice_runtime runtime, uint32_t tensor);

typedef struct sluice_group {
  size_t struct_size;
  double lr, beta1, beta2, eps, weight_decay;
  int32_t l2_decay;        /* 0: decoupled (AdamW); 1: added to the gradient (Adam) */
  int32_t bias_correction; /* 0 or 1 */
} sluice_group;

/* Where the caller keeps a tensor's parameter, in host memory. */
typedef struct sluice_place {
  void* data;    /* the tensor's elements in `dtype`, aligned to it; NULL: not said */
  int32_t dtype; /* SLUICE_F32 for SLUICE_KEEP_MOMENTS; it may be another in each step for STATES */
  int32_t reserved; /* 0 */
} sluice_place;

typedef struct sluice_step_args {
  size_t struct_size;
  const sluice_group* groups; /* copied */
  uint32_t group_count;       /* every tensor's group must be below it */
  double clip_norm;           /* 0: no clipping */
  /* Copied; by tensor: where those that are lent lie and have a gradient. They are read (a value
   * that the caller has changed since goes into the master, or is it) and written until their unit
   * is updated (sluice_acquire waits for that, sluice_drain for all), and must stay where they are.
   * NULL if there are none. */
  const sluice_place* places;
  uint64_t place_count;
} sluice_step_args;

typedef struct sluice_step_result {
  size_t struct_size;
  double grad_norm;  /* of the unscaled gradients, before clipping; Inf or NaN on overflow */
  int32_t applied;   /* 0: overflow, nothing was changed */
  double loss_scale; /* to multiply the next loss by */
} sluice_step_result;

/* Decides norm, overflow and clipping from all gradients handed over, then starts the updates,
 * which go on by themselves, and finishes the ticket. Tensors without a gradient are left alone. */
SLUICE_API sluice_status sluice_step(sluice_runtime runtime, const sluice_step_args* args,
                                     sluice_ticket* ticket);
SLUICE_API sluice_status sluice_last_step(sluice_runtime runtime, sluice_step_result* result);
SLUICE_API sluice_status sluice_loss_scale(sluice_runtime runtime, double* scale);

/* Done when all updates and writes begun have ended, after an error when nothing lent is in use. */
SLUICE_API sluice_status sluice_drain(sluice_runtime runtime, sluice_ticket* ticket);

/* ---- Reading and writing values ---- */

typedef enum sluice_field {
  SLUICE_PARAM = 0, /* the compute copy, the unit's param_dtype; read only, except bytes */
  /* fp32; writing it also sets the compute copy, which it is if frozen. This and SLUICE_PARAM:
   * NOT_FOUND if SLUICE_KEEP_MOMENTS: they are the caller's own. */
  SLUICE_MASTER = 1,
  SLUICE_EXP_AVG = 2, /* this and the next: NOT_FOUND if frozen */
  SLUICE_EXP_AVG_SQ = 3,
  SLUICE_GRAD = 4 /* the unit's grad_dtype; NOT_FOUND if there is none. Written: it is replaced, or
                     set if there is none, and sluice_grad adds to it; not of frozen tensors */
} sluice_field;

/* The whole tensor, after all updates started before this call. `data` is host memory of `elements`
 * values of `dtype` (converted from or to the field's own), which stays until it is done. */
SLUICE_API sluice_status sluice_read(sluice_runtime runtime, uint32_t tensor, int32_t field,
                                     void* data, int32_t dtype, int64_t elements,
                                     sluice_ticket* ticket);
SLUICE_API sluice_status sluice_write(sluice_runtime runtime, uint32_t tensor, int32_t field,
                                      const void* data, int32_t dtype, int64_t elements,
                                      sluice_ticket* ticket);

/* ---- Looking inside ---- */

/* Counters, budgets, peaks, placement and what was chosen, as JSON (docs/api.md lists the keys). */
SLUICE_API sluice_status sluice_report(sluice_runtime runtime, char* json, size_t capacity,
                                       size_t* needed);
/* What the hardware does, measured without Sluice; rates per second, 0: infinitely fast. */
typedef struct sluice_rates {
  size_t struct_size;
  double forward_seconds; /* compute of all forward passes of one step, everything resident */
  double backward_seconds;
  double nvme_bytes;      /* reads and writes mixed */
  double update_elements; /* AdamW from memory, all workers */
  double checksum_bytes;
  double copy_bytes;    /* into and out of HBM */
  int32_t shared_cores; /* 1: compute, updates and checksums share the cores, so their times add */
} sluice_rates;
typedef struct sluice_floor_terms { /* seconds */
  size_t struct_size;
  double total, forward, backward, io, update, checksum, copies, gradients, spill;
} sluice_floor_terms;

/* The shortest time of one step on that hardware, term by term: offload/plan/floor.h. */
SLUICE_API sluice_status sluice_floor(sluice_runtime runtime, const sluice_rates* rates,
                                      sluice_floor_terms* terms);
/* For the report's efficiency of steps: the lesser of the floors by rates set before and after. */
SLUICE_API sluice_status sluice_set_rates(sluice_runtime runtime, const sluice_rates* rates);
/* Sets every counter of the report to zero and forgets the spans recorded. */
SLUICE_API sluice_status sluice_reset_counters(sluice_runtime runtime);
/* The spans as Chrome trace JSON (Perfetto), and the last step's calls. Call after sluice_drain. */
SLUICE_API sluice_status sluice_trace_write(sluice_runtime runtime, const char* path);
/* A span of the caller's own ("forward"), on the track "compute", in ns of CLOCK_MONOTONIC. */
SLUICE_API sluice_status sluice_trace_span(sluice_runtime runtime, const char* name,
                                           int64_t begin_ns, int64_t end_ns);

/* The machine, what Sluice would choose, and advice, as JSON. `path` may be NULL. */
SLUICE_API sluice_status sluice_doctor(const char* path, char* json, size_t capacity,
                                       size_t* needed);
/* That blocks on drives are verified with, of `data` as record `block` in version `generation`. */
SLUICE_API sluice_status sluice_checksum(const void* data, uint64_t bytes, uint32_t block,
                                         uint64_t generation, uint64_t* checksum);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* SLUICE_OFFLOAD_SLUICE_H_ */
