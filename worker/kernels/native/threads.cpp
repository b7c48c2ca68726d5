#include "threads.h"

#include <ATen/Parallel.h>
#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>

namespace firstlight {
namespace {

// How long a helper looks for work before it sleeps: longer than what lies between two operators of
// a step, shorter than what others on this core would miss. A pause is about 40 cycles.
constexpr int kPausesAwake = 3000;

// Of what is coming, a helper fetches no more than leaves room in its second-level cache.
constexpr int64_t kMostFetched = 256 << 10;
constexpr int64_t kLine = 64;

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

  void expect(const Coming& coming) {
    coming_bytes_.store(coming.bytes, std::memory_order_relaxed);
    coming_.store(coming.from, std::memory_order_relaxed);
  }

 private:
  // How far a helper has fetched of what is coming.
  struct Fetched {
    const uint8_t* from = nullptr;
    int64_t bytes = 0;
  };

  // Asks for the next line; false when nothing more is to be fetched. What two threads see of one
  // another here may be half of the truth: no harm is done by asking for any memory.
  bool fetch_next(int number, Fetched& fetched) {
    const uint8_t* from = coming_.load(std::memory_order_relaxed);
    const int64_t bytes = coming_bytes_.load(std::memory_order_relaxed);
    if (from != fetched.from) fetched = {from, 0};
    if (from == nullptr || fetched.bytes >= std::min(bytes, kMostFetched)) return false;
    // The caller takes the first piece.
    _mm_prefetch(from + (number + 1) * bytes + fetched.bytes, _MM_HINT_T1);
    fetched.bytes += kLine;
    return true;
  }

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
    Fetched fetched;
    for (;;) {
      seen = wait_for_turn(seen, number, fetched);
      helping_.fetch_add(1);
      if (turn_.load() == seen && number < wanted_) take_pieces();
      helping_.fetch_sub(1);
    }
  }

  // The number of an open job that is not `seen`.
  uint32_t wait_for_turn(uint32_t seen, int number, Fetched& fetched) {
    for (int pauses = 0;;) {
      const uint32_t turn = turn_.load(std::memory_order_acquire);
      if (turn % 2 == 1 && turn != seen) return turn;
      if (fetch_next(number, fetched)) continue;
      if (pauses++ < kPausesAwake) {
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
  std::atomic<const uint8_t*> coming_{nullptr};
  std::atomic<int64_t> coming_bytes_{0};
};

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "a futex is 32 bits");

Team& team() {
  static Team* team = new Team;  // outlives its helpers
  return *team;
}

}  // namespace

void run_pieces(int64_t pieces, void (*work)(void*, int64_t), void* context) {
  team().run(pieces, work, context, at::get_num_threads());
}

void expect(const Coming& coming) { team().expect(coming); }

}  // namespace firstlight
