// See `pool.h`.
#include "pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#include <signal.h>
#endif

#include "kernels.h"
#include "range.h"

namespace recurra {
namespace {

// The time for which a waiting thread spins before it sleeps. If the wait is longer, the other
// thread is probably not scheduled. Waking a sleeping thread takes 5 to 50 us.
constexpr double kSpinMicroseconds = 100;
// The time after which a thread that waits starts parts of other threads: longer than it takes a
// spinning thread to see that it may continue.
constexpr double kHelpMicroseconds = 3;
// After that time, a waiting thread scans the parts of all threads at every 16th spin.
constexpr int kSpinsBetweenScans = 16;
constexpr int64_t kCacheLine = 64;
constexpr const char* kThreadName = "recurra-kernel";  // in tools such as top

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

struct SpinLimits {
  int64_t help, sleep;
};

// The duration of `relax` differs by a factor of ten between processors.
SpinLimits measure_spins() {
  constexpr int kSpins = 1000;
  double shortest = 1e9;
  for (int repetition = 0; repetition < 3; repetition++) {
    auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kSpins; i++) relax();
    std::chrono::duration<double, std::micro> passed = std::chrono::steady_clock::now() - start;
    shortest = std::min(shortest, passed.count());
  }
  const double per_microsecond = kSpins / std::max(shortest, 1e-3);
  return {int64_t(kHelpMicroseconds * per_microsecond), int64_t(kSpinMicroseconds * per_microsecond)};
}

const SpinLimits& spin_limits() {
  static const SpinLimits limits = measure_spins();
  return limits;
}

// A counter in a separate cache line.
struct alignas(kCacheLine) Counter {
  std::atomic<int64_t> count{0};
};

// The progress of a stage. A slot is a part of a group: group * parts + part. `started` counts the
// steps that each slot has started, `finished` the steps that the parts of each group have
// finished, added up. No part starts a step before all parts of its group have finished the
// previous one. Therefore all of them have finished s steps if and only if `finished` is at least
// s * parts.
struct StageState {
  Stage stage;
  int slots;
  std::unique_ptr<Counter[]> started, finished;
  alignas(kCacheLine) std::atomic<int> unfinished;  // groups

  explicit StageState(const Stage& given)
      : stage(given),
        slots(given.grid.groups * given.grid.parts),
        started(new Counter[slots]),
        finished(new Counter[given.grid.groups]),
        unfinished(given.grid.steps > 0 ? given.grid.groups : 0) {}
};

// A call of `run_stages`. A worker may look at a job after its end, so the last of those that hold
// it deletes it. The contexts of the stages are used only while a part is running.
class Job {
 public:
  Job(const Stage* stages, int count, int participants)
      : participants_(participants), holders_(participants) {
    for (int i = 0; i < count; i++) stages_.emplace_back(new StageState(stages[i]));
  }

  // Returns when all stages have finished.
  void take_part(int participant) {
    for (auto& state : stages_) run_stage(*state, participant);
  }

  void release() {
    if (holders_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

 private:
  void run_stage(StageState& s, int participant) {
    const Range own = part(s.slots, participant, participants_);
    const SpinLimits& limits = spin_limits();
    int64_t spins = 0;
    while (s.unfinished.load(std::memory_order_acquire) > 0) {
      bool advanced = advance(s, own);
      if (!advanced && spins >= limits.help && spins % kSpinsBetweenScans == 0)
        advanced = advance(s, {0, s.slots});
      if (advanced) {
        spins = 0;
      } else if (spins < limits.sleep) {
        relax(), spins++;
      } else {
        sleep(s);
        // A multiple of kSpinsBetweenScans above `help`: the next turn scans the parts of all
        // threads.
        spins = limits.help / kSpinsBetweenScans * kSpinsBetweenScans + kSpinsBetweenScans;
      }
    }
  }

  // Runs the steps that can start; returns whether there were any.
  bool advance(StageState& s, Range slots) {
    bool advanced = false;
    for (int64_t slot = slots.begin; slot < slots.end; slot++)
      while (run_step(s, int(slot))) {
        advanced = true;
        if (s.stage.grid.parts > 1) break;
      }
    return advanced;
  }

  // Runs the next step of a part, unless it has finished, is running, or has to wait.
  bool run_step(StageState& s, int slot) {
    int64_t step = s.started[slot].count.load(std::memory_order_relaxed);
    if (!can_start(s, slot, step)) return false;
    // Fails where another thread has started the step.
    if (!s.started[slot].count.compare_exchange_strong(step, step + 1, std::memory_order_acquire))
      return false;
    const Grid& grid = s.stage.grid;
    const int group = slot / grid.parts;
    s.stage.work(s.stage.context, group, slot % grid.parts, step);
    // A thread increments `sleepers_` before it looks at the progress, and this thread makes progress
    // before it reads `sleepers_`. At least one of them sees the other, so no wake-up is lost.
    if (s.finished[group].count.fetch_add(1) + 1 == grid.steps * grid.parts)
      s.unfinished.fetch_sub(1);
    if (sleepers_.load() > 0) wake();
    return true;
  }

  // Whether a part that has started `step` steps can start the next one.
  static bool can_start(const StageState& s, int slot, int64_t step) {
    const Grid& grid = s.stage.grid;
    return step < grid.steps && s.finished[slot / grid.parts].count.load() >= step * grid.parts;
  }

  void sleep(const StageState& s) {
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    if (!has_work(s)) progress_.wait(lock);
    sleepers_.fetch_sub(1);
  }

  static bool has_work(const StageState& s) {
    if (s.unfinished.load() == 0) return true;
    for (int slot = 0; slot < s.slots; slot++)
      if (can_start(s, slot, s.started[slot].count.load())) return true;
    return false;
  }

  void wake() {
    { std::lock_guard<std::mutex> lock(mutex_); }
    progress_.notify_all();
  }

  const int participants_;
  std::vector<std::unique_ptr<StageState>> stages_;
  std::atomic<int> holders_;
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable progress_;
};

// How often the processors of the process are counted again.
constexpr std::chrono::milliseconds kCountInterval{100};

#if defined(__linux__)
cpu_set_t added_processors{};  // See `recurra_add_processors`.
#endif

// The processors that this process may use. On Linux they are those of its first thread, of the
// calling thread, and those that were added: each of these threads may be confined to fewer, and
// threads inherit the processors of the thread that starts them.
class Processors {
 public:
  int count() const { return count_; }

#if defined(__linux__)
  // Counts again; returns whether other processors are allowed now.
  bool refresh() {
    cpu_set_t mask, own;
    if (sched_getaffinity(getpid(), sizeof mask, &mask) != 0 ||
        sched_getaffinity(0, sizeof own, &own) != 0) {
      count_ = hardware_threads();
      return false;
    }
    CPU_OR(&mask, &mask, &own);
    CPU_OR(&mask, &mask, &added_processors);
    if (is_known_ && CPU_EQUAL(&mask, &mask_)) return false;
    mask_ = mask;
    is_known_ = true;
    count_ = CPU_COUNT(&mask);
    return true;
  }

  // Sets the affinity mask of a thread to these processors. On failure, it keeps its mask.
  void set_affinity(pid_t thread) const {
    cpu_set_t mask;
    if (!is_known_ || sched_getaffinity(thread, sizeof mask, &mask) != 0) return;
    if (!CPU_EQUAL(&mask, &mask_)) sched_setaffinity(thread, sizeof mask_, &mask_);
  }

 private:
  bool is_known_ = false;
  cpu_set_t mask_;
#else
  bool refresh() {
    count_ = hardware_threads();
    return false;
  }

 private:
#endif
  static int hardware_threads() { return std::max(1, int(std::thread::hardware_concurrency())); }
  int count_ = 1;
};

// A thread of the pool. Its mailbox holds the last job that it has not begun.
class alignas(kCacheLine) Worker {
 public:
  // The processors on which the worker runs at first; `move_to` changes them.
  explicit Worker(const Processors& processors) : first_processors_(processors) {}

  void post(Job* job) {
    if (Job* missed = mail_.exchange(job)) missed->release();
    if (!asleep_.load()) return;
    { std::lock_guard<std::mutex> lock(mutex_); }
    awake_.notify_one();
  }

  void move_to(const Processors& processors) {
#if defined(__linux__)
    if (const pid_t thread = thread_.load()) processors.set_affinity(thread);
#else
    (void)processors;
#endif
  }

  void serve(int participant) {
#if defined(__linux__)
    pthread_setname_np(pthread_self(), kThreadName);
    thread_.store(pid_t(syscall(SYS_gettid)));
#elif defined(__APPLE__)
    pthread_setname_np(kThreadName);
#endif
    move_to(first_processors_);
    for (;;) {
      Job* job = next();
      job->take_part(participant);
      job->release();
    }
  }

 private:
  Job* next() {
    for (int64_t spins = 0; spins < spin_limits().sleep; spins++, relax())
      if (mail_.load(std::memory_order_relaxed))
        return mail_.exchange(nullptr, std::memory_order_acquire);
    std::unique_lock<std::mutex> lock(mutex_);
    asleep_.store(true);
    Job* job;
    while (!(job = mail_.exchange(nullptr))) awake_.wait(lock);
    asleep_.store(false);
    return job;
  }

  const Processors first_processors_;
#if defined(__linux__)
  std::atomic<pid_t> thread_{0};
#endif
  std::atomic<Job*> mail_{nullptr};
  std::atomic<bool> asleep_{false};
  std::mutex mutex_;
  std::condition_variable awake_;
};

class Pool {
 public:
  // Never deleted: the workers use it until the process ends.
  static Pool& instance() {
    static std::once_flag once;
    std::call_once(once, [] {
      current_ = new Pool;
#if !defined(_WIN32)
      // A forked process has none of the threads.
      pthread_atfork(nullptr, nullptr, [] { current_ = new Pool; });
#endif
    });
    return *current_;
  }

  void run(int threads, const Stage* stages, int count) {
    int slots = 0;
    for (int i = 0; i < count; i++)
      slots = std::max(slots, stages[i].grid.groups * stages[i].grid.parts);
    std::unique_lock<std::mutex> lock(mutex_, std::defer_lock);
    int participants = 1;
    if (std::min(threads, slots) > 1 && lock.try_lock())
      participants = available(std::min(threads, slots));
    if (participants == 1) return run_alone(stages, count);
    Job* job = new Job(stages, count, participants);
    for (int i = 1; i < participants; i++) workers_[i - 1]->post(job);
    job->take_part(0);
    job->release();
  }

  void set_limit(int threads) {
    std::lock_guard<std::mutex> lock(mutex_);
    limit_ = std::min(threads, kMaxThreads);
  }

 private:
  static void run_alone(const Stage* stages, int count) {
    for (const Stage* s = stages; s < stages + count; s++)
      for (int group = 0; group < s->grid.groups; group++)
        for (int64_t step = 0; step < s->grid.steps; step++)
          for (int part = 0; part < s->grid.parts; part++)
            s->work(s->context, group, part, step);
  }

  // Returns the number of threads that can work, the caller included: at most `wanted`, the limit
  // (by default the number of processors), and 1 + the number of workers that could be started.
  int available(int wanted) {
    const auto now = std::chrono::steady_clock::now();
    if (now >= next_count_) {
      next_count_ = now + kCountInterval;
      if (processors_.refresh())
        for (Worker* worker : workers_) worker->move_to(processors_);
    }
    wanted = std::min(wanted, limit_ > 0 ? limit_ : processors_.count());
    return std::min(wanted, 1 + grow(wanted - 1));
  }

  // Starts workers until there are `wanted`, or the system refuses a thread. Returns the number of
  // workers, which can exceed `wanted`.
  int grow(int wanted) {
    while (int(workers_.size()) < wanted) {
      auto* worker = new Worker(processors_);
      const int participant = int(workers_.size()) + 1;
      if (!start_thread([=] { worker->serve(participant); })) {
        delete worker;
        break;
      }
      workers_.push_back(worker);
    }
    return int(workers_.size());
  }

  // Workers block all signals, so that the program's own threads handle them.
  template <class Work>
  static bool start_thread(Work work) {
#if !defined(_WIN32)
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
#endif
    bool started = true;
    try {
      std::thread(work).detach();
    } catch (const std::system_error&) {
      started = false;
    }
#if !defined(_WIN32)
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
#endif
    return started;
  }

  static Pool* current_;
  Processors processors_;
  std::chrono::steady_clock::time_point next_count_{};
  int limit_ = 0;
  std::mutex mutex_;  // held while a job is running
  std::vector<Worker*> workers_;
};

Pool* Pool::current_ = nullptr;

}  // namespace

void run_stages(int threads, const Stage* stages, int count) {
  Pool::instance().run(std::min(threads, kMaxThreads), stages, count);
}

}  // namespace recurra

// Limits the threads that work at the same time, however many parts a kernel has; 0 stands for the
// processors of this process.
RECURRA_EXPORT void recurra_limit_threads(int32_t threads) {
  recurra::Pool::instance().set_limit(threads);
}

// Adds processors to those that this process may use, although its threads are confined to fewer: an
// OpenMP runtime can bind the first thread to one of them. No kernel may be running. On Linux only.
RECURRA_EXPORT void recurra_add_processors(int32_t count, const int32_t* processors) {
#if defined(__linux__)
  for (int32_t i = 0; i < count; i++)
    if (processors[i] >= 0 && processors[i] < CPU_SETSIZE)
      CPU_SET(processors[i], &recurra::added_processors);
#else
  (void)count, (void)processors;
#endif
}
