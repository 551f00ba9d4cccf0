"""A chat whose rooms span servers: `app.py` is the whole server, `static/chat.js` the whole page."""
