// Threads of a block as fibers of one thread. They run one at a time, until they wait for others: for the
// block at a barrier, for their warp at an instruction that works across lanes. Whatever order they run in,
// a kernel without races gives the same bits; so each launch has an order, and tests take two.
#pragma once
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

namespace emulation {

constexpr int kWarp = 32, kWarpgroup = 128, kMostThreads = 1024, kNamed = 16;
constexpr size_t kStack = 128 << 10, kMostShared = 227 << 10;  // bytes; the latter as on sm_90

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// 16 bytes that have been asked for and not waited for; from nowhere: zeros.
struct Copy {
  void* to;
  const void* from;
  void perform() const { from ? std::memcpy(to, from, 16) : std::memset(to, 0, 16); }
};

struct Fiber {
  enum class State { ready, block, together, event, done } state = State::done;
  const void* event = nullptr;  // what it waits for
  bool begun = false;
  jmp_buf at;
  ucontext_t start;
  std::vector<std::vector<Copy>> copies{1};  // groups, oldest first; the last one is open
  const char* waits_for = "";
};

// Lanes at an instruction of a warp, or of a warpgroup.
struct Group {
  void* operands[kWarpgroup];
  int arrived = 0;
  const char* what = nullptr;
};

// Products of a warpgroup that have been begun and not waited for, in groups; the last one is open.
struct Products {
  std::vector<std::vector<std::function<void()>>> groups{1};
  bool fenced = false;
};

// One machine for the process: kernels run one after the other.
struct Machine {
  std::mutex busy;
  Index thread, block;
  bool reversed = false;  // threads in falling order, and copies as early as can be; else as late
  int capability = 8;     // the first figure of what the GPU is
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  std::string failure;

  Fiber fibers[kMostThreads];
  Group warps[kMostThreads / kWarp], warpgroups[kMostThreads / kWarpgroup];
  Products products[kMostThreads / kWarpgroup];
  int counted[kNamed];                          // threads at each named barrier
  std::vector<std::function<void()>> arriving;  // boxes on their way, oldest first
  int threads = 0, current = 0, at_barrier = 0;
  bool vote = false, voted = false;  // of those at the barrier; of the barrier before
  jmp_buf scheduler;
  std::function<void()> body;
  unsigned char* stacks = nullptr;
  unsigned char *shared_begin = nullptr, *shared_end = nullptr;  // the page behind it is forbidden

  Machine() {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const auto map = [](size_t bytes) {
      void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      return static_cast<unsigned char*>(p);
    };
    stacks = map(kMostThreads * kStack);
    for (int t = 0; t < kMostThreads; ++t) mprotect(stacks + t * kStack, page, PROT_NONE);
    const size_t room = (kMostShared + page - 1) / page * page;
    unsigned char* const area = map(room + 2 * page);
    mprotect(area, page, PROT_NONE);
    shared_begin = area + page, shared_end = shared_begin + room;
    mprotect(shared_end, page, PROT_NONE);
  }
};
inline Machine* const the_machine = new Machine;
inline Machine& machine() { return *the_machine; }

[[noreturn]] inline void fail(const std::string& why) {
  Machine& m = machine();
  if (m.failure.empty())
    m.failure = why + " (thread " + std::to_string(m.current) + " of block " + std::to_string(m.block.x) +
                ", " + std::to_string(m.block.y) + ", " + std::to_string(m.block.z) + ")";
  _longjmp(m.scheduler, 1);
}

// Back to the scheduler, which comes back here.
__attribute__((noinline)) inline void yield() {
  Machine& m = machine();
  if (_setjmp(m.fibers[m.current].at) == 0) _longjmp(m.scheduler, 1);
}

inline void fiber_main() {
  for (;;) {
    Machine& m = machine();
    m.body();
    Fiber& self = m.fibers[m.current];
    if (self.copies.size() > 1 || !self.copies[0].empty())
      fail("a thread ends before its copies have arrived");
    const Products& products = m.products[m.current / kWarpgroup];
    if (products.groups.size() > 1 || !products.groups[0].empty())
      fail("a thread ends before its products are there");
    self.state = Fiber::State::done;
    yield();
  }
}

// Whether any thread voted for it.
inline bool sync_block(bool vote = false) {
  Machine& m = machine();
  m.vote = m.vote || vote;
  m.fibers[m.current].waits_for = "a barrier of the block";
  m.fibers[m.current].state = Fiber::State::block;
  if (++m.at_barrier == m.threads) {
    m.at_barrier = 0;
    m.voted = m.vote, m.vote = false;
    for (int t = 0; t < m.threads; ++t) m.fibers[t].state = Fiber::State::ready;
    return m.voted;
  }
  yield();
  return m.voted;
}

// What all lanes of a warp, or of a warpgroup, do together: the last to arrive calls compute(operands) with
// all lanes' operands.
template <int kLanes = kWarp, class Operands, class Compute>
void together(const char* what, Operands* mine, const Compute& compute) {
  Machine& m = machine();
  Group& group = (kLanes == kWarp ? m.warps : m.warpgroups)[m.current / kLanes];
  const int first = m.current / kLanes * kLanes;
  if (group.arrived > 0 && std::strcmp(group.what, what) != 0)
    fail(std::string("lanes of a warp diverge: one is at ") + what + ", another at " + group.what);
  group.what = what;
  group.operands[m.current - first] = mine;
  m.fibers[m.current].waits_for = what;
  m.fibers[m.current].state = Fiber::State::together;
  if (++group.arrived == kLanes) {
    Operands* all[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) all[lane] = static_cast<Operands*>(group.operands[lane]);
    compute(all);
    group.arrived = 0;
    for (int lane = 0; lane < kLanes; ++lane) m.fibers[first + lane].state = Fiber::State::ready;
    return;
  }
  yield();
}

// Until another thread, or a copy, wakes those who wait for this event.
inline void wait_for(const void* event, const char* what) {
  Fiber& self = machine().fibers[machine().current];
  self.event = event, self.waits_for = what, self.state = Fiber::State::event;
  yield();
}
inline void wake(const void* event) {
  for (Fiber& fiber : machine().fibers)
    if (fiber.state == Fiber::State::event && fiber.event == event) fiber.state = Fiber::State::ready;
}

inline void resume(int t) {
  Machine& m = machine();
  m.current = t;
  m.thread.x = static_cast<unsigned>(t);
  Fiber& fiber = m.fibers[t];
  if (_setjmp(m.scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.at, 1);
  fiber.begun = true;
  fiber.copies.assign(1, {});
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = m.stacks + static_cast<size_t>(t) * kStack;
  fiber.start.uc_stack.ss_size = kStack;
  makecontext(&fiber.start, fiber_main, 0);
  setcontext(&fiber.start);
}

// Each of 32 threads that can run, until it waits; whether any could. Nothing runs on after a failure.
inline bool run_warp(int first) {
  Machine& m = machine();
  bool any = false;
  for (int n = 0; n < kWarp; ++n) {
    const int t = first + (m.reversed ? kWarp - 1 - n : n);
    if (m.fibers[t].state != Fiber::State::ready || !m.failure.empty()) continue;
    any = true;
    resume(t);
  }
  return any;
}

// A warp runs as far as it can before the next one does: what it must not overtake, it overtakes.
inline void run_block() {
  Machine& m = machine();
  std::memset(m.shared, 0xff, m.shared_bytes);  // not a number in every type
  m.at_barrier = 0, m.vote = false;
  for (Group& group : m.warps) group.arrived = 0;
  for (Group& group : m.warpgroups) group.arrived = 0;
  for (Products& products : m.products) products = {};
  for (int& counted : m.counted) counted = 0;
  m.arriving.clear();
  for (int t = 0; t < m.threads; ++t) m.fibers[t].state = Fiber::State::ready;
  for (bool any = true; any;) {
    any = false;
    for (int n = 0; n < m.threads; n += kWarp)
      while (run_warp(m.reversed ? m.threads - kWarp - n : n)) any = true;
    if (any || m.arriving.empty() || !m.failure.empty()) continue;
    const std::function<void()> latest =
        m.arriving.front();  // a box arrives when nobody can go on without it
    m.arriving.erase(m.arriving.begin());
    latest();
    for (int t = 0; t < m.threads; ++t) any = any || m.fibers[t].state != Fiber::State::done;
    if (!any) m.failure = "a block ends before its boxes have arrived";
  }
  for (int t = 0; t < m.threads && m.failure.empty(); ++t) {
    if (m.fibers[t].state == Fiber::State::done) continue;
    m.failure = "thread " + std::to_string(t) + " waits for ever at " + m.fibers[t].waits_for;
  }
}

inline void forbidden(int) { fail("memory access out of bounds"); }

// Runs body once for each thread of each block; the failure is empty where all went well.
inline std::string run(Index grid, unsigned threads, size_t shared_bytes, const std::function<void()>& body) {
  Machine& m = machine();
  const std::lock_guard<std::mutex> lock(m.busy);
  m.threads = static_cast<int>(threads);
  m.shared_bytes = (shared_bytes + 127) / 128 * 128;  // its end is the end of what may be touched
  m.shared = m.shared_end - m.shared_bytes;
  m.body = body;
  if (!m.failure.empty())  // its fibers stopped anywhere
    for (Fiber& fiber : m.fibers) fiber.begun = false;
  m.failure.clear();
  struct sigaction action{}, segv_before, bus_before;
  action.sa_handler = forbidden;
  action.sa_flags = SA_NODEFER;
  sigaction(SIGSEGV, &action, &segv_before);
  sigaction(SIGBUS, &action, &bus_before);
  for (m.block.z = 0; m.block.z < grid.z; ++m.block.z)
    for (m.block.y = 0; m.block.y < grid.y; ++m.block.y)
      for (m.block.x = 0; m.block.x < grid.x && m.failure.empty(); ++m.block.x) run_block();
  sigaction(SIGSEGV, &segv_before, nullptr);
  sigaction(SIGBUS, &bus_before, nullptr);
  return m.failure;
}

}  // namespace emulation
