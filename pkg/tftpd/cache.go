package tftpd

import (
	lru "container/list"
	"sync"
	"sync/atomic"
)

const (
	// imageCost is what an image is charged beside its bytes, so that files of no size are bounded, too.
	imageCost = 1 << 10

	// ownTotal is what images that are nobody else's read ahead together before each of them has to do with less.
	ownTotal = 128 << 20
)

// A Cache bounds the files that libraries share and keep, in bytes. An image is charged before its bytes are fetched, so the bound
// holds at any time. What nobody reads is given up for what somebody wants to read, the longest unread first. Libraries of any loop may use it.
type Cache struct {
	max int64
	own atomic.Int64 // images of stage own

	hits, fetches, validations, evicted atomic.Uint64

	// An image that is resting belongs to the Cache: any loop may evict it. So there is nothing to ask its own loop, and nothing is
	// called with mu held.
	mu      sync.Mutex
	used    int64    // charged
	spare   int64    // of that: resting
	charged int      // images
	resting lru.List // of *image, the one read last at the front
}

// NewCache makes a Cache of so many bytes. 0: nothing is shared or kept.
func NewCache(bytes int64) *Cache { return &Cache{max: bytes} }

// CacheStats is what a Cache has, and has counted.
type CacheStats struct {
	Limit  int64 // bytes
	Bytes  int64 // that are charged: of files that are being read or were
	Idle   int64 // of those: that nobody reads at the moment
	Images int   // files they belong to

	Hits        uint64 // requests whose file was there, or was coming already for somebody else
	Fetches     uint64 // files that were fetched, with or without a place in the Cache
	Validations uint64 // questions to a store whether a file is still the same
	Evicted     uint64 // files that were given up for others
}

// Stats returns the counts. From anywhere.
func (c *Cache) Stats() CacheStats {
	s := CacheStats{Limit: c.max, Hits: c.hits.Load(), Fetches: c.fetches.Load(), Validations: c.validations.Load(), Evicted: c.evicted.Load()}
	c.mu.Lock()
	s.Bytes, s.Idle, s.Images = c.used, c.spare, c.charged
	c.mu.Unlock()
	return s
}

// fits reports whether a file of that size could have a place, if nobody else had.
func (c *Cache) fits(size int64) bool { return size >= 0 && size <= c.max-imageCost }

// reserve charges im, at the expense of what is resting.
func (c *Cache) reserve(im *image) bool {
	cost := im.size + imageCost
	var gone []*image
	c.mu.Lock()
	if c.used-c.spare+cost > c.max {
		c.mu.Unlock()
		return false
	}
	for c.used+cost > c.max {
		old := c.resting.Back().Value.(*image)
		c.uncharge(old)
		old.chunks = nil
		gone = append(gone, old)
	}
	im.cost = cost
	im.lib.kept += cost
	c.used += cost
	c.charged++
	c.mu.Unlock()

	c.evicted.Add(uint64(len(gone)))
	for _, old := range gone {
		old.lib.loop.Post(old.lost)
	}
	return true
}

// rest gives im to the Cache.
func (c *Cache) rest(im *image) {
	c.mu.Lock()
	im.place = c.resting.PushFront(im)
	c.spare += im.cost
	c.mu.Unlock()
}

// wake takes im back. It reports false if it was evicted.
func (c *Cache) wake(im *image) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if im.place == nil {
		return false
	}
	c.resting.Remove(im.place)
	im.place = nil
	c.spare -= im.cost
	return true
}

// release is told that im, charged or not, resting or not, is no more.
func (c *Cache) release(im *image) {
	c.mu.Lock()
	c.uncharge(im)
	c.mu.Unlock()
}

func (c *Cache) uncharge(im *image) {
	if im.place != nil {
		c.resting.Remove(im.place)
		im.place = nil
		c.spare -= im.cost
	}
	if im.cost != 0 {
		im.lib.kept -= im.cost
		c.used -= im.cost
		c.charged--
		im.cost = 0
	}
}
