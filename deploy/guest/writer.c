/*
 * Writes stamped 4 KiB blocks to one disk without pause, and acknowledges on standard output only after an fsync of
 * the block device (without it an O_DIRECT write may vanish with QEMU).
 *
 * A block is a 64-byte stamp, 64 times over, so that a torn block shows at every 64 bytes:
 *     0 "DRYSTONE"  8 disk u32  12 zero u32  16 block u64  24 sequence u64  32 ring u64  40 uptime ns u64
 *     48 zero[12]  60 crc32 of the 60 bytes before                                          (all little-endian)
 * Sequence s (from 1) goes to block s * 2654435761 % ring when scattered (a prime above any ring: every block once
 * per round), to block (s - 1) % ring when in order. So "sequence s is safe" says what every block must hold.
 *
 * Lines, read by deploy/guest/model.py:
 *     @begin DISK RING ORDER FIRST           this boot writes from sequence FIRST on
 *     @a DISK SEQUENCE                       everything up to SEQUENCE is flushed
 *     @w DISK UPTIME_MS LONGEST_US SEQUENCE  once a second: longest time between two acknowledgements so far
 *     @bad DISK BLOCK WHAT                   drystone.check: a block that is not what it should be
 *     @checked DISK BLOCKS BAD               drystone.check: end of the read-back
 *
 * usage: writer DEVICE DISK RING_BLOCKS BATCH RATE_KIB ORDER(scattered|sequential) CHECK(0|1)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, STAMP = 64, COPIES = BLOCK / STAMP, READ_BLOCKS = 256, MAX_BATCH = 1024 };
#define PRIME 2654435761ull

struct stamp {
    char magic[8];
    uint32_t disk, zero;
    uint64_t block, sequence, ring, uptime;
    uint32_t pad[3], crc;
} __attribute__((packed));

static int device, disk, sequential;
static uint64_t ring;

static void die(const char *what) {
    printf("@error %d %s: %s\n", disk, what, strerror(errno));
    fflush(stdout);
    exit(1);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static uint32_t crc32(const void *data, size_t size) {
    const unsigned char *byte = data;
    uint32_t crc = ~0u;
    while (size--) {
        crc ^= *byte++;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    }
    return ~crc;
}

static uint64_t place(uint64_t sequence) {
    return sequential ? (sequence - 1) % ring : sequence * PRIME % ring;
}

static void fill(char *block, uint64_t sequence) {
    struct stamp stamp = {.disk = disk, .block = place(sequence), .sequence = sequence, .ring = ring, .uptime = now()};
    memcpy(stamp.magic, "DRYSTONE", 8);
    stamp.crc = crc32(&stamp, STAMP - 4);
    for (int copy = 0; copy < COPIES; copy++) memcpy(block + copy * STAMP, &stamp, STAMP);
}

/* 1 a stamp, 0 never written, -1 something else */
static int judge(const char *block, uint64_t number, uint64_t *sequence) {
    static const char nothing[BLOCK];
    struct stamp stamp;
    if (memcmp(block, nothing, BLOCK) == 0) return 0;
    memcpy(&stamp, block, STAMP);
    if (memcmp(block, block + STAMP, BLOCK - STAMP) || memcmp(stamp.magic, "DRYSTONE", 8)) return -1;
    if (stamp.block != number || stamp.disk != (uint32_t)disk || stamp.crc != crc32(&stamp, STAMP - 4)) return -1;
    *sequence = stamp.sequence;
    return 1;
}

/* Reads the whole ring and returns the highest sequence there: a guest that starts again must go on above it. */
static uint64_t look(char *buffer, int check) {
    uint64_t highest = 0, bad = 0, sequence = 0;
    for (uint64_t first = 0; first < ring; first += READ_BLOCKS) {
        uint64_t count = ring - first < READ_BLOCKS ? ring - first : READ_BLOCKS;
        if (pread(device, buffer, count * BLOCK, first * BLOCK) != (ssize_t)(count * BLOCK)) die("read");
        for (uint64_t i = 0; i < count; i++) {
            int verdict = judge(buffer + i * BLOCK, first + i, &sequence);
            if (verdict > 0 && sequence > highest) highest = sequence;
            if (verdict < 0 && ++bad <= 20 && check) printf("@bad %d %llu damaged\n", disk, (unsigned long long)(first + i));
        }
    }
    if (check) printf("@checked %d %llu %llu\n", disk, (unsigned long long)ring, (unsigned long long)bad);
    return highest;
}

static void put(const char *buffer, uint64_t count, uint64_t block) {
    if (pwrite(device, buffer, count * BLOCK, block * BLOCK) != (ssize_t)(count * BLOCK)) die("write");
}

/* In order, a batch is one write (two where the ring ends); scattered, one write for each block. */
static void write_batch(char *buffer, uint64_t first, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) fill(buffer + i * BLOCK, first + i);
    if (!sequential) {
        for (uint64_t i = 0; i < count; i++) put(buffer + i * BLOCK, 1, place(first + i));
        return;
    }
    uint64_t until_end = ring - place(first), head = count < until_end ? count : until_end;
    put(buffer, head, place(first));
    if (head < count) put(buffer + head * BLOCK, count - head, 0);
}

static void pace(uint64_t began, uint64_t bytes, uint64_t rate) {
    uint64_t due = rate ? began + bytes * 1000000000ull / rate : 0, t = now();
    if (due > t) {
        struct timespec nap = {(due - t) / 1000000000ull, (due - t) % 1000000000ull};
        nanosleep(&nap, NULL);
    }
}

static void run(char *buffer, uint64_t next, uint64_t batch, uint64_t rate) {
    uint64_t longest = 0, began = now(), said = began, bytes = 0;
    for (;; next += batch) {
        uint64_t start = now(), end;
        write_batch(buffer, next, batch);
        if (fsync(device)) die("fsync");
        end = now();
        if (end - start > longest) longest = end - start;
        printf("@a %d %llu\n", disk, (unsigned long long)(next + batch - 1));
        if (end - said >= 1000000000ull) {
            said = end;
            printf("@w %d %llu %llu %llu\n", disk, (unsigned long long)(end / 1000000), (unsigned long long)(longest / 1000),
                   (unsigned long long)(next + batch - 1));
        }
        fflush(stdout);
        bytes += batch * BLOCK;
        pace(began, bytes, rate);
    }
}

int main(int argc, char **argv) {
    if (argc != 8) return 2;
    uint64_t size = 0, batch = strtoull(argv[4], NULL, 10), rate = strtoull(argv[5], NULL, 10) * 1024;
    disk = atoi(argv[2]);
    ring = strtoull(argv[3], NULL, 10);
    sequential = strcmp(argv[6], "sequential") == 0;
    char *buffer = aligned_alloc(BLOCK, MAX_BATCH * BLOCK);
    if ((device = open(argv[1], O_RDWR | O_DIRECT)) < 0 || ioctl(device, BLKGETSIZE64, &size) || !buffer) die("open");
    if (!ring || ring > size / BLOCK) ring = size / BLOCK;
    if (batch < 1) batch = 1;
    if (batch > MAX_BATCH) batch = MAX_BATCH;
    if (batch > ring) batch = ring;
    uint64_t next = look(buffer, atoi(argv[7])) + 1;
    printf("\n@begin %d %llu %s %llu\n", disk, (unsigned long long)ring, sequential ? "sequential" : "scattered",
           (unsigned long long)next);
    fflush(stdout);
    run(buffer, next, batch, rate);
}
