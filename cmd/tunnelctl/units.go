package main

import (
	"fmt"
	"time"
)

// size writes bytes with the unit that leaves one to four digits.
func size(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	for ; v >= 1023.95 && unit < 4; unit++ { // which would be written as 1024.0
		v /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTP"[unit])
}

// speed writes bytes per second.
func speed(n float64) string {
	if n <= 0 {
		return "-"
	}
	return size(uint64(n+0.5)) + "/s"
}

// perSecond writes a count per second.
func perSecond(n float64) string {
	switch {
	case n <= 0:
		return "-"
	case n < 10:
		return fmt.Sprintf("%.1f/s", n)
	}
	return fmt.Sprintf("%.0f/s", n)
}

// bitRate writes bits per second as cameras have them: in thousands.
func bitRate(n uint64) string {
	switch {
	case n >= 1e6:
		return fmt.Sprintf("%.1f Mbit/s", float64(n)/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.0f kbit/s", float64(n)/1e3)
	}
	return fmt.Sprintf("%d bit/s", n)
}

// age writes a duration with its two largest units.
func age(d time.Duration) string {
	d = max(d, 0).Round(time.Second)
	switch {
	case d >= 24*time.Hour:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return d.String()
}

// moment writes when something was: the time of day, if it was one of the last twelve hours.
func moment(t time.Time) string {
	if since := time.Since(t); since > 12*time.Hour || since < -12*time.Hour {
		return t.Local().Format("2006-01-02 15:04")
	}
	return t.Local().Format(time.TimeOnly)
}

// millis writes a latency, 0 for one that is not known.
func millis(ms float64) string {
	switch {
	case ms <= 0:
		return "-"
	case ms >= 10_000:
		return fmt.Sprintf("%.0f s", ms/1000)
	case ms >= 1000:
		return fmt.Sprintf("%.1f s", ms/1000)
	case ms >= 100:
		return fmt.Sprintf("%.0f ms", ms)
	}
	return fmt.Sprintf("%.1f ms", ms)
}
