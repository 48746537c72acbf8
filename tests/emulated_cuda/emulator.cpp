// Runs kernels and checks them: bounds and alignment of every access, memory that nothing has written, races, barriers
// and warp operations that not all threads reach, and the limits of a launch. Blocks run one after the other, those of a
// cooperative launch all at once; a seed chooses which thread goes on.
#include <csetjmp>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <ucontext.h>

#include "cuda.h"

namespace emu {
namespace {

constexpr size_t kStack = 32768, kGuard = 256;
constexpr size_t kMostShared = 48 * 1024;  // without cudaFuncSetAttribute
constexpr unsigned kLanes = 32;
constexpr uint32_t kSeveral = ~0u;

// When an access was, and whose: what says whether a barrier has come since. A grid of 0: never.
struct Stamp {
  uint32_t grid = 0, block = 0, barrier = 0, warp = 0, sync = 0, thread = 0;
};
struct Shadow {
  Stamp write, read;
  bool initialised = false;
};
struct Memory {
  std::string name;
  const char *begin, *end;
  unsigned granule;  // bytes that share a shadow
  bool writable;
  std::vector<Shadow> shadows;
};

enum class State { ready, in_warp, in_block, in_grid, done };
const char* const kStates[] = {"ready", "waiting for its warp", "waiting for its block", "waiting for the grid", "done"};

struct Block;
struct Thread {
  std::unique_ptr<char[]> stack{new char[kStack]};
  jmp_buf context;
  ucontext_t first;
  bool started = false;
  Block* block = nullptr;
  uint32_t index = 0;
  State state = State::done;
  int line = 0, argument = 0;
  uint64_t value = 0;
};
struct WarpState {
  uint32_t syncs = 0;
  unsigned arrived = 0, mask = 0;
  Warp operation = Warp::sync;
  int line = 0;
};
struct Shared {
  int line;
  std::vector<char> bytes;
  Memory memory;
};
struct Block {
  uint32_t number = 0, barriers = 0, arrived = 0, done = 0;
  int line = 0;  // of the barrier that threads wait at
  std::vector<Thread*> threads;
  std::vector<WarpState> warps;
  std::vector<std::unique_ptr<Shared>> shared;
};

struct Emulator {
  // What a test sets.
  uint64_t random = 1;
  bool shuffled = false;  // else the first thread that can go on does
  int processors = 1, per_processor = 1;
  unsigned most_blocks = 0;  // of kernels that stride over the rest of their work; 0: any
  std::vector<Memory> buffers;
  // What a test reads.
  std::vector<std::string> errors;
  uint64_t accesses = 0;
  // Of the launch that runs.
  std::deque<Thread> fibers;
  std::deque<Thread*> ready;
  std::vector<Block> blocks;
  jmp_buf scheduler;
  Thread* current = nullptr;
  Launch launch{};
  uint32_t grid = 0, arrived = 0;  // at a barrier of the grid
  int line = 0;
  bool failed = false, cooperative = false;
  const char* body = nullptr;
  size_t body_bytes = 0;
  void (*call)(const void*) = nullptr;
  std::map<const void*, Cooperative> kernels;
  cudaError_t error = cudaSuccess;
} e;

uint64_t dice(uint64_t sides) {
  e.random ^= e.random << 13;
  e.random ^= e.random >> 7;
  e.random ^= e.random << 17;
  return (e.random * 0x2545f4914f6cdd1dull >> 32) % sides;
}

void report(const std::string& text) {
  const std::string thread = e.current == nullptr ? "" : "block " + std::to_string(e.current->block->number) +
                                                             " thread " + std::to_string(e.current->index) + ": ";
  if (e.errors.size() < 10) e.errors.push_back(thread + text);
}

// ---- Fibers

// Back to the scheduler, until this thread's turn comes again.
void leave() {
  if (_setjmp(e.current->context) == 0) _longjmp(e.scheduler, 1);
}

[[noreturn]] void abandon(const std::string& text) {
  report(text);
  e.failed = true;
  _longjmp(e.scheduler, 1);
}

void wait(State state, int line) {
  e.current->state = state;
  e.current->line = line;
  leave();
}

void wake(Thread& thread) {
  thread.state = State::ready;
  e.ready.push_back(&thread);
}

// A fiber serves one thread after the other.
void fiber() {
  while (true) {
    e.call(e.body);
    ++e.current->block->done;
    wait(State::done, 0);
  }
}

void resume(Thread& thread) {
  e.current = &thread;
  if (_setjmp(e.scheduler) == 0) {
    if (thread.started) _longjmp(thread.context, 1);
    thread.started = true;
    getcontext(&thread.first);
    thread.first.uc_stack.ss_sp = thread.stack.get();
    thread.first.uc_stack.ss_size = kStack;
    thread.first.uc_link = nullptr;
    makecontext(&thread.first, fiber, 0);
    setcontext(&thread.first);
  }
  e.current = nullptr;
}

// ---- Memory

// Whether nothing orders an access behind one of another thread.
bool races(const Stamp& before, const Stamp& now) {
  if (before.grid != now.grid) return false;
  if (before.block != now.block) return true;
  if (before.barrier != now.barrier) return false;
  if (before.warp != now.warp) return true;
  return before.sync == now.sync && before.thread != now.thread;
}

// One stamp stands for all reads that nothing orders: of several threads, warps or blocks.
void add_read(Stamp& read, const Stamp& now) {
  if (read.grid != now.grid) read = now;
  else if (read.block != now.block) read.block = kSeveral;
  else if (read.barrier != now.barrier) read = now;
  else if (read.warp != now.warp) read.warp = kSeveral;
  else if (read.sync != now.sync) read = now;
  else if (read.thread != now.thread) read.thread = kSeveral;
}

std::string place(const Memory& memory, const char* at, size_t size, bool write) {
  return std::string(write ? "write" : "read") + " of " + std::to_string(size) + " bytes at byte " +
         std::to_string(at - memory.begin) + " of " + memory.name;
}

void check(Memory& memory, const char* at, size_t size, bool write) {
  if (at + size > memory.end) abandon("out of bounds: " + place(memory, at, size, write));
  if (!memory.writable) {
    if (write) abandon("not writable: " + place(memory, at, size, write));
    return;
  }
  Thread& thread = *e.current;
  const uint32_t warp = thread.index / kLanes;
  const Stamp now{e.grid, thread.block->number, thread.block->barriers, warp, thread.block->warps[warp].syncs, thread.index};
  const size_t first = (at - memory.begin) / memory.granule, last = (at + size - 1 - memory.begin) / memory.granule;
  for (size_t i = first; i <= last; ++i) {
    Shadow& shadow = memory.shadows[i];
    if (races(shadow.write, now)) report("race: " + place(memory, at, size, write) + " after a write");
    if (write && races(shadow.read, now)) report("race: " + place(memory, at, size, write) + " after a read");
    if (!write && !shadow.initialised) report("uninitialised: " + place(memory, at, size, write));
    if (write) shadow = {now, {}, true};
    else add_read(shadow.read, now);
  }
}

void access(const void* address, size_t size, bool write) {
  if (e.current == nullptr) return;  // the host
  const auto* at = static_cast<const char*>(address);
  const char* stack = e.current->stack.get();
  if (at >= stack && at + size <= stack + kStack) return;
  ++e.accesses;
  if (!write && at >= e.body && at + size <= e.body + e.body_bytes) return;  // arguments
  if (size <= 16 && (size & (size - 1)) == 0 && reinterpret_cast<uintptr_t>(at) % size != 0)
    report("misaligned: access of " + std::to_string(size) + " bytes");
  for (const auto& shared : e.current->block->shared)
    if (at >= shared->memory.begin && at < shared->memory.end) return check(shared->memory, at, size, write);
  for (Memory& buffer : e.buffers)
    if (at >= buffer.begin && at < buffer.end) return check(buffer, at, size, write);
  std::string text = std::string("out of bounds: ") + (write ? "write" : "read") + " of " + std::to_string(size) + " bytes at";
  for (const Memory& buffer : e.buffers) text += " " + buffer.name + "+" + std::to_string(at - buffer.begin);
  abandon(text);
}

std::vector<Shadow> shadows_of(size_t bytes, unsigned granule) { return std::vector<Shadow>((bytes + granule - 1) / granule); }

// ---- Blocks

void start(Block& block, uint32_t number, std::deque<Thread>::iterator fibers) {
  const unsigned size = e.launch.block.x;
  block.number = number;
  block.barriers = block.arrived = block.done = 0;
  block.warps.assign((size + kLanes - 1) / kLanes, {});
  for (const auto& shared : block.shared) {
    std::fill(shared->bytes.begin(), shared->bytes.end(), static_cast<char>(0xff));  // NaN, and no index
    std::fill(shared->memory.shadows.begin(), shared->memory.shadows.end(), Shadow{});
  }
  block.threads.clear();
  for (uint32_t i = 0; i < size; ++i, ++fibers) {
    fibers->block = &block;
    fibers->index = i;
    block.threads.push_back(&*fibers);
    wake(*fibers);
  }
}

// Until all threads of the blocks that were started have returned.
void run_threads() {
  while (!e.failed && !e.ready.empty()) {
    if (e.shuffled) std::swap(e.ready.front(), e.ready[dice(e.ready.size())]);
    Thread& thread = *e.ready.front();
    e.ready.pop_front();
    resume(thread);
  }
  for (Block& block : e.blocks)
    for (Thread* thread : block.threads)
      if (!e.failed && thread->state != State::done) {
        e.failed = true;
        report("deadlock: block " + std::to_string(block.number) + " thread " + std::to_string(thread->index) + " is " +
               kStates[static_cast<int>(thread->state)] + " in line " + std::to_string(thread->line));
      }
}

uint64_t of_lane(Warp operation, const std::vector<Thread*>& threads, unsigned first, unsigned mask, unsigned lane) {
  const Thread& thread = *threads[first + lane];
  if (operation == Warp::sync) return 0;
  if (operation == Warp::ballot) {
    uint64_t bits = 0;
    for (unsigned i = 0; i < kLanes; ++i)
      if (mask >> i & 1) bits |= uint64_t(threads[first + i]->value != 0) << i;
    return bits;
  }
  unsigned source = operation == Warp::from        ? thread.argument % kLanes
                    : operation == Warp::exclusive ? lane ^ thread.argument
                                                   : lane + thread.argument;
  if (source >= kLanes) source = lane;
  if ((mask >> source & 1) == 0) report("shuffle from a lane that is not in the mask");
  return threads[first + source]->value;
}

}  // namespace

// ---- What kernels call

dim3 thread_index() { return {e.current->index}; }
dim3 block_index() { return {e.current->block->number}; }
dim3 block_size() { return e.launch.block; }
dim3 grid_size() { return e.launch.grid; }
int blocks_per_processor() { return e.per_processor; }
void know_kernel(const void* kernel, Cooperative launch) { e.kernels[kernel] = launch; }

void fail(const char* text, int line) { abandon(std::string("assertion in line ") + std::to_string(line) + ": " + text); }

void* shared_memory(size_t bytes, int line) {
  Block& block = *e.current->block;
  size_t total = bytes;
  for (const auto& shared : block.shared) {
    if (shared->line == line) return shared->bytes.data() + kGuard;
    total += shared->bytes.size() - 2 * kGuard;
  }
  if (total > kMostShared) abandon("more than 48 KiB of shared memory");
  block.shared.emplace_back(new Shared{line, std::vector<char>(bytes + 2 * kGuard, static_cast<char>(0xff)), {}});
  Shared& shared = *block.shared.back();
  const char* begin = shared.bytes.data() + kGuard;
  shared.memory = {"shared memory of line " + std::to_string(line), begin, begin + bytes, 4, true, shadows_of(bytes, 4)};
  return shared.bytes.data() + kGuard;
}

void block_barrier(int line) {
  Block& block = *e.current->block;
  if (block.arrived > 0 && block.line != line)
    abandon("divergence: barriers of lines " + std::to_string(block.line) + " and " + std::to_string(line));
  block.line = line;
  if (++block.arrived < block.threads.size()) return wait(State::in_block, line);
  block.arrived = 0;
  ++block.barriers;
  for (Thread* other : block.threads)
    if (other->state == State::in_block) wake(*other);
  wake(*e.current);
  leave();
}

void grid_barrier(int line) {
  if (!e.cooperative) abandon("grid.sync() in a launch that is not cooperative");
  if (e.arrived > 0 && e.line != line)
    abandon("divergence: grid barriers of lines " + std::to_string(e.line) + " and " + std::to_string(line));
  e.line = line;
  if (++e.arrived < e.launch.grid.x * e.launch.block.x) return wait(State::in_grid, line);
  e.arrived = 0;
  ++e.grid;
  for (Block& block : e.blocks)
    for (Thread* other : block.threads)
      if (other->state == State::in_grid) wake(*other);
  wake(*e.current);
  leave();
}

uint64_t warp_wide(Warp operation, unsigned mask, uint64_t value, int argument, int line) {
  Thread& thread = *e.current;
  Block& block = *thread.block;
  const unsigned lane = thread.index % kLanes, first = thread.index - lane;
  WarpState& warp = block.warps[first / kLanes];
  if ((mask >> lane & 1) == 0) abandon("not in the mask of its operation in line " + std::to_string(line));
  if (warp.arrived == 0) {
    warp.operation = operation;
    warp.mask = mask;
    warp.line = line;
  } else if (warp.operation != operation || warp.mask != mask || warp.line != line) {
    abandon("divergence: lines " + std::to_string(warp.line) + " and " + std::to_string(line) + " in one warp");
  }
  warp.arrived |= 1u << lane;
  thread.value = value;
  thread.argument = argument;
  if (warp.arrived != mask) {
    wait(State::in_warp, line);
    return thread.value;
  }
  uint64_t results[kLanes];
  for (unsigned i = 0; i < kLanes; ++i)
    if (mask >> i & 1) results[i] = of_lane(operation, block.threads, first, mask, i);
  warp.arrived = 0;
  if (operation == Warp::sync) ++warp.syncs;
  for (unsigned i = 0; i < kLanes; ++i)
    if (mask >> i & 1) {
      block.threads[first + i]->value = results[i];
      wake(*block.threads[first + i]);
    }
  leave();  // who came last need not go on first
  return thread.value;
}

// ---- What the host calls

cudaError_t run(const Launch& launch, bool cooperative, const void* body, size_t bytes, void (*call)(const void*)) {
  const auto& [grid, block, shared_bytes, stream] = launch;
  if (grid.y != 1 || grid.z != 1 || block.y != 1 || block.z != 1 || shared_bytes != 0) {
    report("launches of more axes, and dynamic shared memory, are not emulated");
    return e.error = cudaErrorInvalidValue;
  }
  if (grid.x == 0 || grid.x > 0x7fffffffu || block.x == 0 || block.x > 1024)
    return e.error = cudaErrorInvalidConfiguration;
  if (cooperative && grid.x > uint64_t(e.processors) * e.per_processor)
    return e.error = cudaErrorCooperativeLaunchTooLarge;
  e.launch = launch;
  if (!cooperative && e.most_blocks != 0) e.launch.grid.x = std::min(grid.x, e.most_blocks);
  e.cooperative = cooperative;
  e.body = static_cast<const char*>(body);
  e.body_bytes = bytes;
  e.call = call;
  ++e.grid;
  e.arrived = 0;
  const uint32_t blocks = e.launch.grid.x, together = cooperative ? blocks : 1;
  while (e.fibers.size() < size_t(together) * block.x) e.fibers.emplace_back();
  e.blocks = std::vector<Block>(together);
  for (uint32_t i = 0; i < blocks && !e.failed; i += together) {
    for (uint32_t j = 0; j < together; ++j) start(e.blocks[j], i + j, e.fibers.begin() + j * block.x);
    run_threads();
  }
  if (!e.failed) return cudaSuccess;
  e.failed = false;
  e.ready.clear();
  e.blocks.clear();
  e.fibers.clear();  // some are in the middle of a kernel
  return e.error = cudaErrorLaunchFailure;
}

}  // namespace emu

cudaError_t cudaGetLastError() { return std::exchange(emu::e.error, cudaSuccess); }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? emu::e.processors : 1;
  return cudaSuccess;
}
cudaError_t cudaLaunchCooperativeKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t bytes,
                                        cudaStream_t stream) {
  return emu::e.kernels.at(kernel)(kernel, {grid, block, bytes, stream}, arguments);
}

extern "C" {

// ---- What the compiler calls for -fsanitize=thread

#define PAX_ACCESS(size)                                                                \
  void __tsan_read##size(void* at) { emu::access(at, size, false); }                    \
  void __tsan_write##size(void* at) { emu::access(at, size, true); }                    \
  void __tsan_unaligned_read##size(void* at) { emu::access(at, size, false); }          \
  void __tsan_unaligned_write##size(void* at) { emu::access(at, size, true); }
PAX_ACCESS(1)
PAX_ACCESS(2)
PAX_ACCESS(4)
PAX_ACCESS(8)
PAX_ACCESS(16)
#undef PAX_ACCESS
void __tsan_read_range(void* at, size_t size) { emu::access(at, size, false); }
void __tsan_write_range(void* at, size_t size) { emu::access(at, size, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

// ---- What a test calls

#define PAX_API __attribute__((visibility("default")))

// Forgets buffers and errors, and says how the next launches run.
PAX_API void emu_begin(uint64_t seed, bool shuffled, int processors, int per_processor, unsigned most_blocks) {
  emu::e.buffers.clear();
  emu::e.errors.clear();
  emu::e.random = (seed + 1) * 0x9e3779b97f4a7c15ull;
  emu::e.shuffled = shuffled;
  emu::e.processors = processors;
  emu::e.per_processor = per_processor;
  emu::e.most_blocks = most_blocks;
}

// Memory that kernels may read, and write if it has a granule: the bytes of the smallest value in it, 4 at most.
PAX_API void emu_buffer(const char* name, const char* begin, size_t bytes, unsigned granule) {
  emu::e.buffers.push_back({name, begin, begin + bytes, granule, granule != 0, {}});
  if (granule != 0) emu::e.buffers.back().shadows = emu::shadows_of(bytes, granule);
}

// What was wrong since emu_begin(), a line each.
PAX_API void emu_errors(char* text, size_t size) {
  std::string all;
  for (const std::string& error : emu::e.errors) all += error + "\n";
  all.resize(std::min(all.size(), size - 1));
  std::memcpy(text, all.c_str(), all.size() + 1);
}

// Accesses that were checked, since the library was loaded.
PAX_API uint64_t emu_accesses() { return emu::e.accesses; }

}
