#include "threads.h"

#include <ATen/Parallel.h>
#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <thread>

namespace firstlight {
namespace {

// How long a helper looks for work before it sleeps: longer than what lies between two operators of
// a step, shorter than what others on this core would miss. A pause is about 40 cycles.
constexpr int kPausesAwake = 3000;

// One team a process, used by one caller at a time. A job is open while `turn` is odd. Who wants to
// help says so in `helping` first and then looks whether the job is still open; the caller closes it
// and then waits until nobody helps. So nobody touches a job that is over.
class Team {
 public:
  void run(int64_t pieces, void (*work)(void*, int64_t), void* context, int threads) {
    std::unique_lock<std::mutex> alone(in_use_, std::try_to_lock);
    if (!alone || pieces == 1 || threads == 1) {
      for (int64_t piece = 0; piece < pieces; ++piece) work(context, piece);
      return;
    }
    while (helpers_ < threads - 1) start_helper();
    work_ = work;
    context_ = context;
    pieces_ = pieces;
    wanted_ = threads - 1;
    next_.store(0, std::memory_order_relaxed);
    turn_.fetch_add(1);
    if (asleep_.load() > 0) wake();
    take_pieces();
    turn_.fetch_add(1);
    while (helping_.load() > 0) _mm_pause();
  }

 private:
  void take_pieces() {
    for (int64_t piece; (piece = next_.fetch_add(1, std::memory_order_relaxed)) < pieces_;) {
      work_(context_, piece);
    }
  }

  void start_helper() {
    const int number = helpers_++;
    std::thread([this, number] { help(number); }).detach();
  }

  [[noreturn]] void help(int number) {
    pthread_setname_np(pthread_self(), "fl-kernels");
    uint32_t seen = 0;
    for (;;) {
      seen = wait_for_turn(seen);
      helping_.fetch_add(1);
      if (turn_.load() == seen && number < wanted_) take_pieces();
      helping_.fetch_sub(1);
    }
  }

  // The number of an open job that is not `seen`.
  uint32_t wait_for_turn(uint32_t seen) {
    for (int pauses = 0;; ++pauses) {
      const uint32_t turn = turn_.load(std::memory_order_acquire);
      if (turn % 2 == 1 && turn != seen) return turn;
      if (pauses < kPausesAwake) {
        _mm_pause();
        continue;
      }
      asleep_.fetch_add(1);
      syscall(SYS_futex, &turn_, FUTEX_WAIT_PRIVATE, turn, nullptr, nullptr, 0);
      asleep_.fetch_sub(1);
      pauses = 0;
    }
  }

  void wake() { syscall(SYS_futex, &turn_, FUTEX_WAKE_PRIVATE, helpers_, nullptr, nullptr, 0); }

  std::mutex in_use_;
  int helpers_ = 0;

  void (*work_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  int64_t pieces_ = 0;
  int wanted_ = 0;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint32_t> turn_{0};
  alignas(64) std::atomic<int> helping_{0};
  std::atomic<int> asleep_{0};
};

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "a futex is 32 bits");

}  // namespace

void run_pieces(int64_t pieces, void (*work)(void*, int64_t), void* context) {
  static Team* team = new Team;  // outlives its helpers
  team->run(pieces, work, context, at::get_num_threads());
}

}  // namespace firstlight
