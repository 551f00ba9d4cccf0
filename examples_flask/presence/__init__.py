"""Who is online, on all servers: `app.py` is the whole server, `static/presence.js` the whole page."""
