// See `pool.h`.
#include "pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#include <signal.h>
#endif

#include "job.h"
#include "kernels.h"
#include "processors.h"
#include "spinning.h"

namespace recurra {
namespace {

constexpr const char* kThreadName = "recurra-kernel";  // in tools such as top
// How often the processors of the process are counted again.
constexpr std::chrono::milliseconds kCountInterval{100};

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
